//! MSI-X: vector table and pending bits (PCIe 5.0, 6.1.4 and 7.7.2).
//!
//! A vector that cannot fire costs nothing: a changed message is handed on when the vector next can.

use serde::{Deserialize, Serialize};

use super::{MsiMessage, read_bytes};

/// Bytes of a table entry.
const ENTRY: usize = 16;
/// Vector control: masked.
const MASKED: u32 = 1;

#[derive(Clone, Copy, Debug)]
struct Entry {
    message: MsiMessage,
    masked: bool,
    pending: bool,
    /// The message that was handed on last.
    routed: Option<MsiMessage>,
    /// Somebody else fires it: what that one was told last of whether it may.
    direct: Option<bool>,
}

/// Vector table, pending bits, and the two bits of message control.
#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

/// Saved [`Msix`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Address, data, masked, pending of each vector.
    pub entries: Vec<(u64, u32, bool, bool)>,
}

impl Msix {
    /// Capability id.
    pub const CAPABILITY: u8 = 0x11;
    /// Message control: MSI-X enable.
    pub const ENABLE: u16 = 1 << 15;
    /// Message control: function mask.
    pub const FUNCTION_MASK: u16 = 1 << 14;

    /// `vectors` masked vectors, as after reset.
    pub fn new(vectors: u16) -> Self {
        let entry = Entry {
            message: MsiMessage::default(),
            masked: true,
            pending: false,
            routed: None,
            direct: None,
        };
        Self {
            entries: vec![entry; vectors.into()],
            enabled: false,
            masked: false,
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Whether MSI-X is on.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Takes message control as the guest has written it.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & Self::ENABLE != 0;
        self.masked = control & Self::FUNCTION_MASK != 0;
    }

    /// Reads from the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let index = (offset / ENTRY as u64) as usize;
        let Some(entry) = self.entries.get(index) else {
            return data.fill(0);
        };
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&entry.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.message.data.to_le_bytes());
        bytes[12] = entry.masked.into();
        read_bytes(&bytes, (offset % ENTRY as u64) as usize, data);
    }

    /// Writes to the table: aligned accesses of 4 or 8 bytes, others are lost (6.1.4.2).
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        for (index, word) in data.chunks_exact(4).enumerate() {
            if let Ok(word) = <[u8; 4]>::try_from(word) {
                self.write_word(offset + 4 * index as u64, u32::from_le_bytes(word));
            }
        }
    }

    fn write_word(&mut self, offset: u64, word: u32) {
        let index = (offset / ENTRY as u64) as usize;
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let address = &mut entry.message.address;
        match offset % ENTRY as u64 {
            // The two lowest bits are always zero.
            0 => *address = (*address & !0xffff_ffff) | u64::from(word & !3),
            4 => *address = (*address & 0xffff_ffff) | (u64::from(word) << 32),
            8 => entry.message.data = word,
            _ => entry.masked = word & MASKED != 0,
        }
    }

    /// Reads pending bits. A guest cannot write them.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let byte = |at: u64| {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let bits = self.entries.iter().skip(first).take(8).enumerate();
            bits.fold(0, |sum, (bit, entry)| sum | u8::from(entry.pending) << bit)
        };
        for (index, slot) in data.iter_mut().enumerate() {
            *slot = byte(offset.saturating_add(index as u64));
        }
    }

    fn can_fire(&self, entry: &Entry) -> bool {
        self.enabled && !self.masked && !entry.masked
    }

    /// Notes that `vector` shall fire. [`take_due`](Self::take_due) tells when it does. Lost while MSI-X is off.
    pub fn raise(&mut self, vector: u16) {
        if let Some(entry) = self
            .entries
            .get_mut(usize::from(vector))
            .filter(|_| self.enabled)
        {
            entry.pending = true;
        }
    }

    /// Vectors that can fire and whose message is not the one that was handed on last: to be handed on now, together.
    pub fn take_changes(&mut self) -> Vec<(u16, MsiMessage)> {
        let mut changes = Vec::new();
        for index in 0..self.entries.len() {
            let entry = self.entries[index];
            if self.can_fire(&entry) && entry.routed != Some(entry.message) {
                self.entries[index].routed = Some(entry.message);
                changes.push((index as u16, entry.message));
            }
        }
        changes
    }

    /// From now on somebody else may fire `vector` while it can fire, and has to be told when.
    pub fn set_direct(&mut self, vector: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(vector)) {
            entry.direct.get_or_insert(false);
        }
    }

    /// Vectors that somebody else fires, where it is not as it was whether they can: to be told now.
    pub fn take_connections(&mut self) -> Vec<(u16, bool)> {
        let mut changes = Vec::new();
        for index in 0..self.entries.len() {
            let entry = self.entries[index];
            let able = self.can_fire(&entry);
            if entry.direct.is_some_and(|before| before != able) {
                self.entries[index].direct = Some(able);
                changes.push((index as u16, able));
            }
        }
        changes
    }

    /// A vector that is pending and can fire; it is not pending any more then.
    pub fn take_due(&mut self) -> Option<u16> {
        let due = self
            .entries
            .iter()
            .position(|entry| entry.pending && self.can_fire(entry))?;
        self.entries[due].pending = false;
        Some(due as u16)
    }

    /// The state to carry on from elsewhere. Message control is part of configuration space.
    pub fn save(&self) -> MsixState {
        let save = |entry: &Entry| {
            let MsiMessage { address, data } = entry.message;
            (address, data, entry.masked, entry.pending)
        };
        MsixState {
            entries: self.entries.iter().map(save).collect(),
        }
    }

    /// Carries on from `state`; every message counts as not handed on yet.
    pub fn restore(&mut self, state: &MsixState) {
        for (entry, &(address, data, masked, pending)) in
            self.entries.iter_mut().zip(&state.entries)
        {
            *entry = Entry {
                message: MsiMessage { address, data },
                masked,
                pending,
                routed: None,
                direct: entry.direct,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: u16 = Msix::ENABLE;

    /// Programs a vector the way Linux does: message first, then unmask.
    fn program(msix: &mut Msix, vector: u64, data: u32) {
        let at = vector * 16;
        msix.write_table(at, &0xfee0_1003_u32.to_le_bytes());
        msix.write_table(at + 4, &[0; 4]);
        msix.write_table(at + 8, &data.to_le_bytes());
        msix.write_table(at + 12, &[0; 4]);
    }

    fn message(data: u32) -> MsiMessage {
        let address = 0xfee0_1000;
        MsiMessage { address, data }
    }

    #[test]
    fn changes_come_once_together_and_only_for_what_can_fire() {
        let mut msix = Msix::new(3);
        program(&mut msix, 0, 0x30);
        program(&mut msix, 1, 0x31);
        assert!(msix.take_changes().is_empty(), "off");
        msix.set_control(ON | Msix::FUNCTION_MASK);
        assert!(msix.take_changes().is_empty(), "function masked");
        msix.set_control(ON);
        assert_eq!(
            msix.take_changes(),
            [(0, message(0x30)), (1, message(0x31))]
        );
        // Masked and unmasked again, or written with the same: nothing changes.
        msix.write_table(12, &1_u32.to_le_bytes());
        program(&mut msix, 0, 0x30);
        assert!(msix.take_changes().is_empty());
        // A change while masked waits for the unmasking.
        msix.write_table(28, &1_u32.to_le_bytes());
        msix.write_table(24, &0x41_u32.to_le_bytes());
        assert!(msix.take_changes().is_empty());
        msix.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(msix.take_changes(), [(1, message(0x41))]);
    }

    #[test]
    fn what_is_masked_stays_pending_and_fires_when_unmasked() {
        let mut msix = Msix::new(70);
        let pending = |msix: &Msix, offset| {
            let mut data = [0xff; 8];
            msix.read_pending(offset, &mut data);
            u64::from_le_bytes(data)
        };
        msix.raise(1);
        assert_eq!(pending(&msix, 0), 0, "off");
        msix.set_control(ON);
        for vector in [1, 69, 69, 70, u16::MAX] {
            msix.raise(vector);
        }
        assert_eq!(msix.take_due(), None);
        assert_eq!((pending(&msix, 0), pending(&msix, 8)), (2, 1 << 5));
        assert_eq!(pending(&msix, u64::MAX), 0);
        program(&mut msix, 1, 1);
        program(&mut msix, 69, 2);
        assert_eq!(msix.take_due(), Some(1));
        msix.set_control(ON | Msix::FUNCTION_MASK);
        assert_eq!(msix.take_due(), None);
        msix.set_control(ON);
        assert_eq!(msix.take_due(), Some(69));
        assert_eq!(msix.take_due(), None);
        assert_eq!((pending(&msix, 0), pending(&msix, 8)), (0, 0));
    }

    #[test]
    fn whoever_fires_a_vector_directly_is_told_when_it_can() {
        let mut msix = Msix::new(2);
        program(&mut msix, 0, 0x30);
        program(&mut msix, 1, 0x31);
        msix.set_control(ON);
        assert!(msix.take_connections().is_empty(), "nobody does");
        msix.set_direct(1);
        msix.set_direct(7);
        assert_eq!(msix.take_connections(), [(1, true)]);
        assert!(msix.take_connections().is_empty(), "once");
        msix.write_table(28, &1_u32.to_le_bytes());
        assert_eq!(msix.take_connections(), [(1, false)]);
        msix.set_control(ON | Msix::FUNCTION_MASK);
        msix.write_table(28, &0_u32.to_le_bytes());
        assert!(msix.take_connections().is_empty(), "masked in another way");
        msix.set_control(ON);
        msix.set_direct(1);
        assert_eq!(msix.take_connections(), [(1, true)]);
        msix.set_control(0);
        assert_eq!(msix.take_connections(), [(1, false)]);
    }

    #[test]
    fn accesses_of_any_shape_are_harmless() {
        let mut msix = Msix::new(2);
        msix.write_table(0, &0x1122_3344_5566_7788_u64.to_le_bytes());
        msix.write_table(8, &0xffff_fffe_0000_0042_u64.to_le_bytes());
        let saved = msix.save();
        assert_eq!(
            saved.entries[0],
            (0x1122_3344_5566_7788, 0x42, false, false)
        );
        for (offset, len) in [(1, 4), (0, 1), (2, 2), (4, 8), (32, 8), (u64::MAX - 3, 4)] {
            msix.write_table(offset, &[0xff; 8][..len]);
        }
        assert_eq!(msix.save(), saved);
        for offset in [0, 5, 13, 31, 32, u64::MAX] {
            msix.read_table(offset, &mut [0; 8]);
        }
        let mut other = Msix::new(2);
        other.restore(&saved);
        assert_eq!(other.save(), saved);
    }
}
