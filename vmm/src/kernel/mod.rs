//! Kernel, initrd and command line into guest memory; the boot protocols.
//!
//! | file       | what lives there                                                             |
//! |------------|------------------------------------------------------------------------------|
//! | `image`    | a file that is mapped into guest memory rather than copied                    |
//! | `protocol` | boot data of the PVH and the 64-bit Linux boot protocol                       |
//!
//! A vmlinux is entered by its PVH note if it has one (PVH: `arch/x86/platform/pvh` and Xen's
//! `docs/misc/pvh.pandoc`), else by the 64-bit boot protocol (`Documentation/arch/x86/boot.rst`). A bzImage is
//! decompressed by [`bzimage`](crate::bzimage) and then is a vmlinux, or, where the configuration says so, is entered
//! as it is and decompresses itself. linux-loader parses and places; what is added here is that pages are mapped.

mod image;
mod protocol;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, BzImage, KernelLoader, bzimage as bzimage_loader, elf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::bzimage::{self, BzImageError, CacheOutcome, KernelCache};
use crate::config::{BootSource, Decompression, HugePages};
use crate::layout::{self, DeviceBus};
use crate::memory::{self, GuestMemory, PAGE_SIZE};
use image::{Image, Placement};

/// Offset of the 64-bit entry point in the protected-mode part of a bzImage (boot.rst, "64-bit Boot Protocol").
const BZIMAGE_64_BIT_ENTRY: u64 = 0x200;
/// `XLF_KERNEL_64`: the bzImage has a 64-bit entry point (boot.rst, `xloadflags`).
const XLF_KERNEL_64: u16 = 1;

/// Why a kernel could not be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file could not be opened or read.
    #[error("{field}: cannot read {}; give the path of a readable file", .path.display())]
    File {
        /// Field of the configuration that names the file.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file is neither a vmlinux nor a bzImage that can be booted.
    #[error(
        "boot-source.kernel_image_path: {} cannot be booted: {reason}; give a vmlinux or bzImage for x86-64, and memory \
         enough for it",
        .path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The bzImage could not be decompressed.
    #[error("boot-source.kernel_image_path")]
    Decompress(#[from] BzImageError),
    /// Kernel and initrd need more memory than there is.
    #[error(
        "machine-config.mem_size_mib: {what} needs memory up to {needed_mib} MiB and the guest has {mib} below its hole; \
         raise it"
    )]
    TooBig {
        /// What does not fit.
        what: &'static str,
        /// Address that would be needed, in MiB, rounded up.
        needed_mib: u64,
        /// Memory that there is, in MiB.
        mib: u64,
    },
    /// The initrd is empty.
    #[error("boot-source.initrd_path: {} is empty; give an initrd or leave the field out", .0.display())]
    EmptyInitrd(PathBuf),
    /// Boot data could not be written into guest memory.
    #[error("cannot write boot data into guest memory")]
    Write(#[from] GuestMemoryError),
    /// Boot data could not be written into guest memory.
    #[error("cannot write boot data into guest memory")]
    BootParams(#[from] linux_loader::configurator::Error),
}

/// Where and how the boot vCPU enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, start info in EBX.
    Pvh {
        /// Instruction pointer.
        address: u64,
    },
    /// 64-bit mode with the low memory mapped one to one, zero page in RSI.
    Linux64 {
        /// Instruction pointer.
        address: u64,
    },
}

/// Guest memory that a file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    base: u64,
    size: u64,
}

/// Loads everything that `source` names into `memory`, with `line` as the command line and a memory map for a machine with
/// `bus`, and returns where the guest begins.
///
/// # Errors
/// [`KernelError`]; guest memory is then in no particular state.
pub fn load(
    source: &BootSource,
    line: &str,
    memory: &GuestMemory,
    huge_pages: HugePages,
    cache: &KernelCache,
    bus: DeviceBus,
) -> Result<Entry, KernelError> {
    let placement = match huge_pages {
        HugePages::None => Placement::Map,
        HugePages::Mib2 => Placement::Copy,
    };
    let kernel = Kernel::load(source, memory, placement, cache)?;
    let initrd = match &source.initrd_path {
        Some(path) => Some(load_initrd(path, memory, placement, &kernel)?),
        None => None,
    };
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(0_u8, GuestAddress(layout::COMMAND_LINE + line.len() as u64))?;
    let map = memory::map(memory, bus);
    match kernel.entry {
        Entry::Pvh { .. } => protocol::write_pvh(memory, &map, initrd)?,
        Entry::Linux64 { .. } => {
            protocol::write_linux64(memory, &map, kernel.header, line.len(), initrd)?;
        }
    }
    Ok(kernel.entry)
}

struct Kernel {
    entry: Entry,
    /// End of the memory that the kernel needs before it manages memory itself.
    end: u64,
    /// Last address that any byte of the initrd may have.
    initrd_max: u64,
    /// The bzImage's own header, where it is entered as a bzImage.
    header: Option<setup_header>,
}

impl Kernel {
    fn load(
        source: &BootSource,
        memory: &GuestMemory,
        placement: Placement,
        cache: &KernelCache,
    ) -> Result<Self, KernelError> {
        let path = &source.kernel_image_path;
        let unreadable = |source| KernelError::File {
            field: "boot-source.kernel_image_path",
            path: path.clone(),
            source,
        };
        let file = open(path).map_err(unreadable)?;
        let compressed = bzimage::is_bzimage(&file).map_err(unreadable)?;
        let file = match (compressed, source.bzimage_decompression) {
            (true, Decompression::Guest) => {
                let image = Image::new(file, placement).map_err(unreadable)?;
                return Self::load_bzimage(path, image, memory);
            }
            (true, Decompression::Host) => {
                let (vmlinux, outcome) = cache.vmlinux_of(&file, path)?;
                if outcome != CacheOutcome::Hit {
                    log::info!("decompressed {}", path.display());
                }
                vmlinux
            }
            (false, _) => file,
        };
        let image = Image::new(file, placement).map_err(unreadable)?;
        Self::load_vmlinux(path, image, memory)
    }

    fn load_vmlinux(
        path: &Path,
        mut image: Image,
        memory: &GuestMemory,
    ) -> Result<Self, KernelError> {
        let high = Some(GuestAddress(layout::HIGH_MEMORY));
        let loaded = Elf::load(memory, None, &mut image, high)
            .map_err(|error| not_loaded(path, memory, &error))?;
        check_fits("the kernel", loaded.kernel_end, memory)?;
        log::debug!(
            "{}: {} of {} bytes mapped",
            path.display(),
            image.mapped(),
            image.len()
        );
        let entry = match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh { address: address.0 },
            _ => Entry::Linux64 {
                address: loaded.kernel_load.0,
            },
        };
        Ok(Self {
            entry,
            end: loaded.kernel_end,
            initrd_max: u64::MAX,
            header: None,
        })
    }

    fn load_bzimage(
        path: &Path,
        mut image: Image,
        memory: &GuestMemory,
    ) -> Result<Self, KernelError> {
        let high = Some(GuestAddress(layout::HIGH_MEMORY));
        let loaded = BzImage::load(memory, None, &mut image, high)
            .map_err(|error| not_loaded(path, memory, &error))?;
        let header = loaded.setup_header.unwrap_or_default();
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(KernelError::NotAKernel {
                path: path.to_owned(),
                reason: "it has no 64-bit entry point".into(),
            });
        }
        // It decompresses itself to its preferred address and needs `init_size` bytes from there.
        let start = loaded.kernel_load.0.max(header.pref_address);
        let end = start
            .saturating_add(u64::from(header.init_size))
            .max(loaded.kernel_end);
        check_fits("the kernel, while it decompresses itself,", end, memory)?;
        Ok(Self {
            entry: Entry::Linux64 {
                address: loaded.kernel_load.0 + BZIMAGE_64_BIT_ENTRY,
            },
            end,
            initrd_max: u64::from(header.initrd_addr_max),
            header: Some(header),
        })
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Opening a FIFO would wait for a writer.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

fn not_loaded(path: &Path, memory: &GuestMemory, error: &loader::Error) -> KernelError {
    use loader::Error::{Bzimage, Elf, InvalidKernelStartAddress};
    let reason = match error {
        Elf(elf::Error::InvalidElfMagicNumber | elf::Error::ReadElfHeader) => {
            "it is neither an ELF file nor a bzImage".into()
        }
        Elf(elf::Error::InvalidEntryAddress) | InvalidKernelStartAddress => {
            "it does not start above 1 MiB, as kernels do".into()
        }
        // linux-loader does not tell a file that ends early from a segment outside memory.
        Elf(elf::Error::ReadKernelImage)
        | Bzimage(bzimage_loader::Error::ReadBzImageCompressedKernel) => format!(
            "it does not fit into {} MiB of memory, or its file is cut short",
            memory::low_end(memory) >> 20
        ),
        other => format!("its headers are damaged: {other}"),
    };
    KernelError::NotAKernel {
        path: path.to_owned(),
        reason,
    }
}

fn check_fits(what: &'static str, end: u64, memory: &GuestMemory) -> Result<(), KernelError> {
    let low_end = memory::low_end(memory);
    if end > low_end {
        return Err(KernelError::TooBig {
            what,
            needed_mib: end.div_ceil(1 << 20),
            mib: low_end >> 20,
        });
    }
    Ok(())
}

/// Puts the initrd at the end of low memory, where no kernel gets in its way.
fn load_initrd(
    path: &Path,
    memory: &GuestMemory,
    placement: Placement,
    kernel: &Kernel,
) -> Result<Placed, KernelError> {
    let unreadable = |source| KernelError::File {
        field: "boot-source.initrd_path",
        path: path.to_owned(),
        source,
    };
    let file = open(path).map_err(unreadable)?;
    let mut image = Image::new(file, placement).map_err(unreadable)?;
    let size = image.len();
    if size == 0 {
        return Err(KernelError::EmptyInitrd(path.to_owned()));
    }
    let limit = memory::low_end(memory).min(kernel.initrd_max.saturating_add(1));
    let base = limit
        .checked_sub(size)
        .map(|base| base - base % PAGE_SIZE)
        .filter(|base| *base >= kernel.end)
        .ok_or(KernelError::TooBig {
            what: "kernel and initrd",
            needed_mib: kernel.end.saturating_add(size).div_ceil(1 << 20),
            mib: limit >> 20,
        })?;
    memory
        .read_exact_volatile_from(GuestAddress(base), &mut image, size as usize)
        .map_err(|error| unreadable(io::Error::other(error)))?;
    Ok(Placed { base, size })
}

#[cfg(test)]
mod tests;
