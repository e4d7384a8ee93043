//! [`KernelCache`]: from a bzImage to an open vmlinux, decompressing at most once per kernel and host.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::decode::{self, DecodeError, SectionReader};
use super::identity::FileId;
use super::store::Store;
use super::{BzImageError, BzImageHeader, MAX_PAYLOAD_BYTES, Payload, memfd, read_head};

/// Part of every key: raised when an entry's contents come to mean something else.
const FORMAT_VERSION: u32 = 1;
/// Entries kept, the newest counted. A host runs few kernels, at about 50 MB each.
const KEEP_ENTRIES: usize = 8;
/// Largest bzImage accepted, in bytes: the largest payload, and as much again for what surrounds it.
const MAX_FILE_BYTES: u64 = 2 * MAX_PAYLOAD_BYTES;

/// How a vmlinux was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// It was in the cache.
    Hit,
    /// It was decompressed, and is in the cache now.
    Miss,
    /// It was decompressed into anonymous memory, which only this process has: the cache directory cannot be used.
    Uncached,
}

/// A directory of decompressed kernels, keyed by the content of the bzImage they came from.
///
/// Any number of processes may use one directory at the same time; `store` says how.
#[derive(Clone, Debug)]
pub struct KernelCache {
    dir: PathBuf,
}

/// What a bzImage is to the cache: its identity and its payload.
struct Image<'a> {
    file: &'a File,
    path: &'a Path,
    payload: Payload,
    id: FileId,
}

/// A failure on the way into the cache.
enum MakeError {
    /// The kernel file's: nothing helps.
    Kernel(BzImageError),
    /// The cache's: anonymous memory helps.
    Cache(io::Error),
}

impl From<io::Error> for MakeError {
    fn from(e: io::Error) -> Self {
        Self::Cache(e)
    }
}

impl KernelCache {
    /// A cache in `dir`, which is made (mode 0700, with its parents) when the first entry is. See [`default_cache_dir`].
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The vmlinux inside the bzImage at `path`, as [`Self::vmlinux_of`] gives it.
    ///
    /// # Errors
    /// [`BzImageError`].
    pub fn vmlinux(&self, path: &Path) -> Result<(File, CacheOutcome), BzImageError> {
        let file = File::open(path).map_err(|source| BzImageError::Open {
            path: path.into(),
            source,
        })?;
        self.vmlinux_of(&file, path)
    }

    /// The vmlinux inside the bzImage `file`; `path` is its name in messages.
    ///
    /// The result is a complete, unchanging ELF file, positioned at its start: a read-only entry of the cache, or,
    /// with a warning in the log, a sealed memfd if the cache directory cannot be used. Relocations may follow the ELF
    /// file's own contents, as the kernel's build puts them there. Memory that decompressing took is given back.
    ///
    /// # Errors
    /// [`BzImageError`] if the file cannot be read, is no bzImage, is damaged or holds no x86-64 vmlinux. A cache
    /// directory that cannot be used is no error.
    pub fn vmlinux_of(
        &self,
        file: &File,
        path: &Path,
    ) -> Result<(File, CacheOutcome), BzImageError> {
        let image = Image::read(file, path)?;
        let len = image.payload.vmlinux_len;
        let store = Store::open(&self.dir).ok();
        if let Some(store) = &store
            && let Some(entry) = store
                .recall(&image.id)
                .and_then(|key| store.lookup(&key, len))
        {
            return Ok((entry, CacheOutcome::Hit));
        }

        let (settled, key) = (image.id.settled(SystemTime::now()), image.key()?);
        let found = store.and_then(|store| store.lookup(&key, len));
        let result = match found {
            Some(entry) => Ok((entry, CacheOutcome::Hit)),
            None => self
                .make(&image, &key)
                .or_else(|e| self.without_cache(&image, &key, e)),
        };
        if settled && matches!(result, Ok((_, CacheOutcome::Hit | CacheOutcome::Miss))) {
            self.remember(&image, &key);
        }
        result
    }

    /// Spares the next start the hashing, if the file is still what it was before it was hashed.
    fn remember(&self, image: &Image<'_>, key: &str) {
        let unchanged = image
            .file
            .metadata()
            .is_ok_and(|meta| FileId::of(&meta) == image.id);
        if unchanged && let Ok(store) = Store::open(&self.dir) {
            // A shared cache of root's is not ours to write to: hashing again is slower and as right.
            let _ = store.remember(&image.id, key);
        }
    }

    /// Anonymous memory instead, if it is the cache that failed.
    fn without_cache(
        &self,
        image: &Image<'_>,
        key: &str,
        e: MakeError,
    ) -> Result<(File, CacheOutcome), BzImageError> {
        let e = match e {
            MakeError::Kernel(e) => return Err(e),
            MakeError::Cache(e) => e,
        };
        log::warn!(
            "kernel cache {} cannot be used ({e}): the vmlinux of {} stays in this process's memory and is decompressed again at each start; make the directory yours and writable, or set TANDEM_CACHE",
            self.dir.display(),
            image.path.display(),
        );
        let file = image.to_memory(key);
        give_memory_back();
        Ok((file?, CacheOutcome::Uncached))
    }

    /// Makes the entry, or waits for the process that does.
    fn make(&self, image: &Image<'_>, key: &str) -> Result<(File, CacheOutcome), MakeError> {
        let store = Store::create(&self.dir)?;
        let lock = store.lock(key)?;
        if let Some(entry) = store.lookup(key, image.payload.vmlinux_len) {
            return Ok((entry, CacheOutcome::Hit));
        }
        let mut entry = store.start(key, &lock)?;
        let decompressed = image.decompress(&mut entry.file);
        give_memory_back();
        decompressed?;
        image.check(&entry.file, key).map_err(MakeError::Kernel)?;
        let file = store.publish(key, entry)?;
        store.prune(key, KEEP_ENTRIES);
        Ok((file, CacheOutcome::Miss))
    }
}

impl<'a> Image<'a> {
    fn read(file: &'a File, path: &'a Path) -> Result<Self, BzImageError> {
        let read = |source| BzImageError::Read {
            path: path.into(),
            source,
        };
        let header = |source| BzImageError::Header {
            path: path.into(),
            source,
        };

        let meta = file.metadata().map_err(read)?;
        let (id, len) = (FileId::of(&meta), meta.size());
        if len > MAX_FILE_BYTES {
            return Err(read(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{len} bytes are over the limit of {MAX_FILE_BYTES} for a bzImage"),
            )));
        }
        let found = BzImageHeader::parse(&read_head(file).map_err(read)?, len).map_err(header)?;
        let (mut first, mut last) = ([0; 4], [0; 4]);
        file.read_exact_at(&mut first, found.payload_offset)
            .map_err(read)?;
        file.read_exact_at(&mut last, found.trailer_offset())
            .map_err(read)?;
        let payload = Payload::new(&found, first, last).map_err(header)?;
        Ok(Self {
            file,
            path,
            payload,
            id,
        })
    }

    /// Decompresses into `out`, telling the kernel file's errors from the sink's.
    fn decompress(&self, out: &mut File) -> Result<(), MakeError> {
        let (path, compression) = (self.path.to_owned(), self.payload.compression.name());
        let declared = self.payload.vmlinux_len;
        decode::decode(self.file, &self.payload, out).map_err(|e| match e {
            DecodeError::Output(e) => MakeError::Cache(e),
            DecodeError::Input(source) => MakeError::Kernel(BzImageError::Decompress {
                path,
                compression,
                source,
            }),
            DecodeError::TooLong => MakeError::Kernel(BzImageError::WrongSize {
                path,
                compression,
                declared,
                actual: "more".into(),
            }),
            DecodeError::TooShort(n) => MakeError::Kernel(BzImageError::WrongSize {
                path,
                compression,
                declared,
                actual: n.to_string(),
            }),
        })
    }

    /// Last questions about what was decompressed: is it a vmlinux, and of the file that the key was computed from?
    fn check(&self, vmlinux: &File, key: &str) -> Result<(), BzImageError> {
        // ELF specification, "ELF header": magic, ELFCLASS64, ELFDATA2LSB; e_machine at 18 is EM_X86_64.
        let mut ident = [0; 20];
        let is_vmlinux = vmlinux.read_exact_at(&mut ident, 0).is_ok()
            && ident.starts_with(b"\x7fELF\x02\x01")
            && ident.ends_with(&62u16.to_le_bytes());
        if !is_vmlinux {
            return Err(BzImageError::NotVmlinux {
                path: self.path.into(),
            });
        }
        // The file was read twice. Had it changed in between, the entry would be wrong for good.
        match self.key()? {
            again if again == key => Ok(()),
            _ => Err(BzImageError::Changed {
                path: self.path.into(),
            }),
        }
    }

    /// The key: BLAKE3 of the whole file (so of the sizes in it, too) and the format version. Read in chunks: about
    /// 0.3 ms for each MB, and no more than one chunk of memory.
    fn key(&self) -> Result<String, BzImageError> {
        let read = |source| BzImageError::Read {
            path: self.path.into(),
            source,
        };
        let len = self.file.metadata().map_err(read)?.size();
        let mut hasher = blake3::Hasher::new();
        let mut reader = SectionReader::new(self.file, 0, len);
        loop {
            let chunk = reader.fill_buf().map_err(read)?;
            if chunk.is_empty() {
                return Ok(format!("{}-v{FORMAT_VERSION}", hasher.finalize().to_hex()));
            }
            hasher.update(chunk);
            let n = chunk.len();
            reader.consume(n);
        }
    }

    fn to_memory(&self, key: &str) -> Result<File, BzImageError> {
        let memory = |source| BzImageError::Memory {
            path: self.path.into(),
            bytes: self.payload.vmlinux_len,
            source,
        };
        let mut file = memfd::create().map_err(memory)?;
        match self.decompress(&mut file) {
            Ok(()) => {}
            Err(MakeError::Kernel(e)) => return Err(e),
            Err(MakeError::Cache(e)) => return Err(memory(e)),
        }
        self.check(&file, key)?;
        memfd::seal(&file).map_err(memory)?;
        io::Seek::rewind(&mut file).map_err(memory)?;
        Ok(file)
    }
}

/// Returns freed memory to the system. musl unmaps large blocks as they are freed; glibc keeps them on its heap.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread and only affects free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Where kernels are cached when nobody says otherwise: `$TANDEM_CACHE/kernels`, else `$XDG_CACHE_HOME/tandem/kernels`
/// (XDG Base Directory Specification; a relative path there is to be ignored), else `$HOME/.cache/tandem/kernels`,
/// else `/var/cache/tandem/kernels`. An empty variable counts as unset.
pub fn default_cache_dir() -> PathBuf {
    cache_dir(|name| env::var_os(name))
}

fn cache_dir(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let path = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("TANDEM_CACHE")
        .or_else(|| {
            path("XDG_CACHE_HOME")
                .filter(|p| p.is_absolute())
                .map(|p| p.join("tandem"))
        })
        .or_else(|| path("HOME").map(|p| p.join(".cache/tandem")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/tandem"))
        .join("kernels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_follows_the_environment() {
        let dir = |set: &[(&str, &str)]| {
            cache_dir(|n| set.iter().find(|(k, _)| *k == n).map(|(_, v)| v.into()))
                .display()
                .to_string()
        };
        let all = [
            ("TANDEM_CACHE", "/t"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
        ];
        assert_eq!(dir(&all), "/t/kernels");
        assert_eq!(dir(&all[1..]), "/x/tandem/kernels");
        assert_eq!(dir(&all[2..]), "/h/.cache/tandem/kernels");
        assert_eq!(
            dir(&[
                ("TANDEM_CACHE", ""),
                ("XDG_CACHE_HOME", "rel"),
                ("HOME", "/h")
            ]),
            "/h/.cache/tandem/kernels"
        );
        assert_eq!(dir(&[]), "/var/cache/tandem/kernels");
    }
}
