//! The 16550A serial port, on vm-superio's model.
//!
//! Output goes to whatever [`Output`] the owner gives; where that has no room for more, the write says so by
//! [`Action::Congested`] and the vCPU waits, with no lock held.
//!
//! Input is offered with [`Serial::offer`], which takes what the guest's FIFO has room for, and nothing while the guest does
//! not assert RTS: a driver that probes the port reads and drops what it finds, and asserts RTS when it is done (TIA-232-F,
//! circuit 133, ready for receiving). When the guest begins to receive, or has read its FIFO empty, the "space" event fires
//! and the owner offers more. So nothing typed is lost and nothing is buffered without bound.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{Error, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Action, BusDevice};
use crate::limit::LogLimit;

type Model = vm_superio::Serial<Interrupt, InputSpace, Box<dyn Output>>;

/// Offset of the interrupt identification register, its bit for none, and its code for received data (16550 data sheet,
/// table IV).
const INTERRUPT_IDENTIFICATION: u64 = 2;
const NO_INTERRUPT: u8 = 1;
const RECEIVED_DATA: u8 = 4;
/// Interrupt enable: received data.
const RECEIVED_DATA_ENABLED: u8 = 1;
/// Offset of the line status register, and its bit for data in the FIFO. Reading it has no effect.
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1;
/// Offset of the modem control register.
const MODEM_CONTROL: u64 = 4;
/// Modem control: request to send, "ready for receiving" in today's words.
const RTS: u8 = 1 << 1;
/// Modem control: the port talks to itself.
const LOOP: u8 = 1 << 4;

/// Where a port's output goes. Writing never waits.
pub trait Output: Write + Send {
    /// Whether whoever writes should wait before writing more.
    fn is_congested(&self) -> bool;
}

impl Output for io::Sink {
    fn is_congested(&self) -> bool {
        false
    }
}

/// Interrupt line of the port; the VMM connects it as an irqfd.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the owner that the guest has read all of its input.
struct InputSpace(EventFd);

impl SerialEvents for InputSpace {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // The event is a level: when the counter is full already, the owner has yet to see it.
        let _ = self.0.write(1);
    }
}

/// A 16550A.
pub struct Serial {
    model: Mutex<Model>,
    input_space: EventFd,
    /// Whether the guest is ready for receiving.
    receiving: AtomicBool,
    limit: LogLimit,
}

/// Saved [`Serial`]: registers by their names in the 16550 data sheet, and input not yet read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SerialState {
    pub divisor_latch_low: u8,
    pub divisor_latch_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub input: Vec<u8>,
}

impl Serial {
    /// First port of COM1.
    pub const COM1: u64 = 0x3f8;
    /// Bytes on the bus.
    pub const LEN: u64 = 8;

    /// A port that interrupts by `interrupt` and sends what the guest writes to `output`.
    ///
    /// `input_space` is written to when the guest begins to receive and when it has read all input; it should be
    /// non-blocking.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(
        interrupt: EventFd,
        input_space: EventFd,
        output: Box<dyn Output>,
    ) -> io::Result<Self> {
        let events = InputSpace(input_space.try_clone()?);
        Ok(Self {
            model: Mutex::new(Model::with_events(Interrupt(interrupt), events, output)),
            input_space,
            receiving: AtomicBool::new(false),
            limit: LogLimit::default(),
        })
    }

    /// Offers input and returns how many bytes from its start the guest's FIFO took: 0 when it is full, or the guest is not
    /// ready for receiving.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn offer(&self, input: &[u8]) -> io::Result<usize> {
        if !self.receiving.load(Ordering::Acquire) {
            return Ok(0);
        }
        match self.lock().enqueue_raw_bytes(input) {
            Ok(taken) => Ok(taken),
            Err(Error::FullFifo) => Ok(0),
            Err(Error::Trigger(error) | Error::IOError(error)) => Err(error),
        }
    }

    /// The state to carry on from elsewhere.
    pub fn save(&self) -> SerialState {
        let state = self.lock().state();
        SerialState {
            divisor_latch_low: state.baud_divisor_low,
            divisor_latch_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    /// A port that carries on from `state`; the other arguments are those of [`new`](Self::new).
    ///
    /// # Errors
    /// `state` holds more input than the FIFO, or the interrupt could not be raised.
    pub fn restore(
        state: &SerialState,
        interrupt: EventFd,
        input_space: EventFd,
        output: Box<dyn Output>,
    ) -> io::Result<Self> {
        let model = vm_superio::SerialState {
            baud_divisor_low: state.divisor_latch_low,
            baud_divisor_high: state.divisor_latch_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        };
        let events = InputSpace(input_space.try_clone()?);
        let model =
            Model::from_state(&model, Interrupt(interrupt), events, output).map_err(|error| {
                match error {
                    Error::FullFifo => io::Error::new(
                        io::ErrorKind::InvalidData,
                        "more serial input than the FIFO holds",
                    ),
                    Error::Trigger(error) | Error::IOError(error) => error,
                }
            })?;
        Ok(Self {
            model: Mutex::new(model),
            input_space,
            receiving: AtomicBool::new(receives(state.modem_control)),
            limit: LogLimit::default(),
        })
    }

    fn set_receiving(&self, receiving: bool) {
        let before = self.receiving.swap(receiving, Ordering::AcqRel);
        if receiving && !before {
            // As in InputSpace: a full counter says the same.
            let _ = self.input_space.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The registers are a byte wide; a wider access gets the bus's ones beyond the first.
        let Some(first) = data.first_mut() else {
            return;
        };
        let mut model = self.lock();
        *first = model.read(offset as u8);
        if offset == INTERRUPT_IDENTIFICATION && *first & NO_INTERRUPT != 0 {
            // The model forgets received data here and at the first byte that is read. A 16550's line stays up until the
            // FIFO is empty, and Linux relies on it: its handler stops after 256 bytes, and comes back for this.
            if model.read(LINE_STATUS) & DATA_READY != 0
                && model.state().interrupt_enable & RECEIVED_DATA_ENABLED != 0
            {
                *first = *first & !NO_INTERRUPT | RECEIVED_DATA;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let Some(&value) = data.first() else {
            return Action::Continue;
        };
        let mut model = self.lock();
        let result = model.write(offset as u8, value);
        let congested = model.writer().is_congested();
        drop(model);
        if offset == MODEM_CONTROL {
            self.set_receiving(receives(value));
        }
        if let Err(error) = result
            && self.limit.allow()
        {
            match error {
                Error::IOError(error) => log::warn!("serial output was lost: {error}"),
                Error::Trigger(error) => log::warn!("serial interrupt was lost: {error}"),
                // Only input fills the FIFO.
                Error::FullFifo => {}
            }
        }
        if congested {
            Action::Congested
        } else {
            Action::Continue
        }
    }
}

/// Whether a guest with this modem control register is ready for receiving.
fn receives(modem_control: u8) -> bool {
    modem_control & (RTS | LOOP) == RTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[derive(Clone, Default)]
    struct Collected(Arc<Mutex<Vec<u8>>>);

    impl Output for Collected {
        fn is_congested(&self) -> bool {
            self.0.lock().unwrap().len() >= 5
        }
    }

    impl Write for Collected {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn event() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    fn port(output: Box<dyn Output>) -> Serial {
        Serial::new(event(), event(), output).unwrap()
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0xff];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_writer() {
        let output = Collected::default();
        let serial = port(Box::new(output.clone()));
        for byte in b"hell" {
            assert_eq!(serial.write(0, &[*byte]), Action::Continue);
        }
        assert_eq!(serial.write(0, b"o"), Action::Congested);
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_is_taken_as_far_as_there_is_room_and_space_is_announced() {
        let (interrupt, space) = (event(), event());
        let serial = Serial::new(
            interrupt.try_clone().unwrap(),
            space.try_clone().unwrap(),
            Box::new(io::sink()),
        )
        .unwrap();
        let _ = serial.write(1, &[1]); // interrupt on received data
        assert_eq!(serial.offer(b"early").unwrap(), 0, "nothing before RTS");
        let _ = serial.write(4, &[LOOP | RTS]);
        assert_eq!(serial.offer(b"early").unwrap(), 0, "nothing in a loop");
        assert!(space.read().is_err());
        let _ = serial.write(4, &[0x0b]);
        assert!(
            space.read().is_ok(),
            "the guest is ready: more is asked for"
        );
        let input: Vec<u8> = (0..200).collect();
        let mut taken = 0;
        let mut seen = Vec::new();
        while taken < input.len() {
            taken += serial.offer(&input[taken..]).unwrap();
            if taken < input.len() {
                assert_eq!(serial.offer(b"more").unwrap(), 0, "the FIFO is full");
            }
            assert!(interrupt.read().is_ok());
            assert!(space.read().is_err());
            while read(&serial, 5) & 1 != 0 {
                seen.push(read(&serial, 0));
            }
            assert!(space.read().is_ok());
        }
        assert_eq!(seen, input);
    }

    /// Linux's handler reads no more than 256 bytes before it asks again.
    #[test]
    fn received_data_is_told_until_all_is_read() {
        let serial = port(Box::new(io::sink()));
        let identification = |serial: &Serial| read(serial, 2) & 0xf;
        let _ = serial.write(4, &[RTS]);
        assert_eq!(serial.offer(b"abc").unwrap(), 3);
        assert_eq!(identification(&serial), NO_INTERRUPT, "not enabled");
        let _ = serial.write(1, &[RECEIVED_DATA_ENABLED]);
        for byte in b"abc" {
            assert_eq!(identification(&serial), RECEIVED_DATA);
            assert_eq!(identification(&serial), RECEIVED_DATA);
            assert_eq!(read(&serial, 0), *byte);
        }
        assert_eq!(identification(&serial), NO_INTERRUPT);
        let _ = serial.offer(b"d");
        let _ = serial.write(1, &[0]);
        let _ = identification(&serial);
        assert_eq!(identification(&serial), NO_INTERRUPT, "no longer enabled");
    }

    #[test]
    fn any_access_is_survived() {
        let serial = port(Box::new(io::sink()));
        for offset in 0..Serial::LEN {
            for value in 0..=u8::MAX {
                let _ = serial.write(offset, &[value, value]);
                let mut data = [0; 4];
                serial.read(offset, &mut data);
            }
        }
    }

    #[test]
    fn state_survives_a_round_trip() {
        let serial = port(Box::new(io::sink()));
        let _ = serial.write(7, &[0x5a]);
        let _ = serial.write(4, &[RTS]);
        serial.offer(b"abc").unwrap();
        let state = serial.save();
        let json = serde_json_round_trip(&state);
        let again = Serial::restore(&json, event(), event(), Box::new(io::sink())).unwrap();
        assert_eq!(again.save(), state);
        assert_eq!(again.offer(b"d").unwrap(), 1);
        assert_eq!(read(&again, 0), b'a');

        let mut too_much = state;
        too_much.input = vec![0; 4096];
        assert!(Serial::restore(&too_much, event(), event(), Box::new(io::sink())).is_err());
    }

    fn serde_json_round_trip(state: &SerialState) -> SerialState {
        serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
    }
}
