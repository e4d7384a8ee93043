use std::io::Write;

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_modlist_entry, hvm_start_info};
use tempfile::NamedTempFile;
use vm_memory::ByteValued;

use super::*;

const MIB: u64 = 1 << 20;

/// An ELF kernel with one segment of `code` at 1 MiB, page-aligned in the file, that needs `memory` bytes, and
/// a PVH note if `pvh`.
fn elf(code: &[u8], memory: u64, pvh: bool) -> Vec<u8> {
    let word = |file: &mut Vec<u8>, bytes: &[u8]| file.extend_from_slice(bytes);
    let mut file = Vec::new();
    word(&mut file, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    word(&mut file, &2_u16.to_le_bytes()); // ET_EXEC
    word(&mut file, &62_u16.to_le_bytes()); // EM_X86_64
    word(&mut file, &1_u32.to_le_bytes());
    word(&mut file, &(MIB + 0x40).to_le_bytes()); // e_entry
    word(&mut file, &64_u64.to_le_bytes()); // e_phoff
    word(&mut file, &0_u64.to_le_bytes());
    word(&mut file, &0_u32.to_le_bytes());
    for value in [64_u16, 56, 2, 0, 0, 0] {
        word(&mut file, &value.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, address: u64, filesz: u64, memsz: u64| {
        word(&mut file, &kind.to_le_bytes());
        word(&mut file, &7_u32.to_le_bytes());
        for value in [offset, address, address, filesz, memsz, 4096] {
            word(&mut file, &value.to_le_bytes());
        }
    };
    header(1, 4096, MIB, code.len() as u64, memory);
    header(4, 0x800, 0, if pvh { 20 } else { 0 }, 0);
    file.resize(0x800, 0);
    for value in [4_u32, 4, 18] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(b"Xen\0");
    file.extend_from_slice(&0x10_0080_u32.to_le_bytes());
    file.resize(4096, 0);
    file.extend_from_slice(code);
    file
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

struct Case {
    source: BootSource,
    memory: GuestMemory,
    _files: Vec<NamedTempFile>,
}

impl Case {
    fn new(kernel: &[u8], initrd: Option<&[u8]>, mib: u64) -> Self {
        let kernel = file(kernel);
        let mut source = BootSource::new(kernel.path());
        let mut files = vec![kernel];
        if let Some(initrd) = initrd {
            let initrd = file(initrd);
            source.initrd_path = Some(initrd.path().to_owned());
            files.push(initrd);
        }
        Self {
            source,
            memory: memory::allocate(mib * MIB, HugePages::None).unwrap(),
            _files: files,
        }
    }

    fn load(&self) -> Result<Entry, KernelError> {
        let cache = KernelCache::new("/nonexistent");
        let (line, none) = (self.source.command_line(), layout::DeviceBus::None);
        load(
            &self.source,
            line,
            &self.memory,
            HugePages::None,
            &cache,
            none,
        )
    }

    fn bytes(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// `T` at `at`, whose size is known to be right; the loader's own types have no reader.
    fn read<T: ByteValued>(&self, at: u64) -> T {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }
}

#[test]
fn a_kernel_with_a_pvh_note_is_entered_by_it() {
    let code: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
    let initrd = vec![0x77; 5_000];
    let case = Case::new(&elf(&code, 20_000, true), Some(&initrd), 64);
    assert_eq!(case.load().unwrap(), Entry::Pvh { address: 0x10_0080 });
    assert_eq!(case.bytes(MIB, code.len()), code);

    let info: hvm_start_info = case.read(layout::PVH_START_INFO);
    assert_eq!((info.magic, info.version), (PVH_MAGIC, 1));
    assert_eq!((info.nr_modules, info.memmap_entries), (1, 3));
    assert_eq!(info.rsdp_paddr, layout::RSDP);
    let module: hvm_modlist_entry = case.read(info.modlist_paddr);
    assert_eq!(module.size, 5_000);
    assert_eq!(module.paddr, 64 * MIB - 8192);
    assert_eq!(case.bytes(module.paddr, 5_000), initrd);
    let line = BootSource::DEFAULT_BOOT_ARGS.as_bytes();
    assert_eq!(case.bytes(info.cmdline_paddr, line.len()), line);
    assert_eq!(case.bytes(info.cmdline_paddr + line.len() as u64, 1), [0]);
}

const PVH_MAGIC: u32 = 0x336e_c578;

#[test]
fn a_kernel_without_a_note_is_entered_in_64_bit_mode() {
    let mut case = Case::new(&elf(b"code", 4, false), Some(b"initrd"), 5 * 1024);
    case.source.boot_args = Some("quiet".into());
    assert_eq!(
        case.load().unwrap(),
        Entry::Linux64 {
            address: MIB + 0x40
        }
    );
    let params: boot_params = case.read(layout::ZERO_PAGE);
    let header = params.hdr;
    assert_eq!({ header.cmdline_size }, 5);
    assert_eq!({ header.ramdisk_size }, 6);
    assert_eq!(
        u64::from(header.ramdisk_image),
        layout::HOLE_START - PAGE_SIZE
    );
    assert_eq!(params.e820_entries, 4);
    let last = params.e820_table[3];
    assert_eq!({ last.addr }, layout::HOLE_END);
    assert_eq!({ last.size }, 2 << 30);
    assert_eq!({ params.acpi_rsdp_addr }, layout::RSDP);
}

#[test]
fn what_does_not_fit_is_named() {
    let too_big = |case: &Case| match case.load() {
        Err(KernelError::TooBig { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let case = Case::new(&elf(b"code", 16 * MIB, true), None, 16);
    assert_eq!(too_big(&case), "the kernel");
    let case = Case::new(&elf(b"code", 10 * MIB, true), Some(&vec![1; 6 << 20]), 16);
    assert_eq!(too_big(&case), "kernel and initrd");
    let case = Case::new(&elf(b"code", 10 * MIB, true), Some(&vec![1; 20 << 20]), 16);
    assert_eq!(too_big(&case), "kernel and initrd");
}

#[test]
fn what_is_missing_or_no_kernel_is_named() {
    let error = |case: &Case| case.load().unwrap_err().to_string();
    let mut case = Case::new(b"", None, 16);
    assert!(error(&case).contains("neither an ELF"), "{}", error(&case));
    case.source.kernel_image_path = "/nonexistent/vmlinux".into();
    assert!(error(&case).starts_with("boot-source.kernel_image_path"));
    case.source.kernel_image_path = "/dev/null".into();
    assert!(error(&case).starts_with("boot-source.kernel_image_path"));

    let mut case = Case::new(&elf(b"code", 4, true), Some(b""), 16);
    assert!(error(&case).starts_with("boot-source.initrd_path"));
    case.source.initrd_path = Some("/nonexistent/initrd".into());
    assert!(error(&case).starts_with("boot-source.initrd_path"));
}

#[test]
fn a_damaged_file_never_panics() {
    let good = elf(&[0x90; 100], 200, true);
    for len in 0..good.len() {
        if len % 61 == 0 || len < 256 {
            let _ = Case::new(&good[..len], None, 16).load();
        }
    }
    for at in 0..0x100 {
        for value in [0, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            let _ = Case::new(&bad, None, 16).load();
        }
    }
    for at in 0x800..0x818 {
        let mut bad = good.clone();
        bad[at] = 0xff;
        let _ = Case::new(&bad, None, 16).load();
    }
}
