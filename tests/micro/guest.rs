//! Guest code in the test program.

/// Defines a function that returns the machine code of a guest, written in the assembly of `prelude.s`.
///
/// The code is position-independent and lies in read-only data: it never runs on the host. Labels are numbers from 2
/// to 7000 (Intel syntax takes `0b` and `1b` for binary numbers).
macro_rules! guest {
    ($name:ident, $code:literal) => {
        std::arch::global_asm!(
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/micro/prelude.s")),
            concat!(
                ".pushsection .rodata.micro_",
                stringify!($name),
                ", \"a\", @progbits"
            ),
            ".balign 16",
            concat!(".globl micro_", stringify!($name)),
            concat!(".globl micro_", stringify!($name), "_end"),
            concat!("micro_", stringify!($name), ":"),
            $code,
            ".code64",
            concat!("micro_", stringify!($name), "_end:"),
            ".popsection",
            options(raw)
        );

        pub fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("micro_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("micro_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both symbols are in one section of read-only data, start before end.
            unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
        }
    };
}

pub(crate) use guest;
