//! The header of an image ("Header" in QEMU's `docs/interop/qcow2.rst`), checked as a whole before anything is done with it.

/// Bytes that are looked at.
pub const HEADER_BYTES: usize = 112;

/// Why an image is refused: the text ends the sentence "the image ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It begins with something else.
    #[error("is not in the format qcow2; give the right format")]
    Magic,
    /// A version that is not 2 or 3.
    #[error("has version {0}, and 2 and 3 are known; convert it (qemu-img convert -O qcow2)")]
    Version(u32),
    /// Something that is not supported.
    #[error("{0}; convert it (qemu-img convert -O qcow2)")]
    Unsupported(&'static str),
    /// It was not closed, and its refcounts cannot be relied on.
    #[error("{0}; repair it (qemu-img check -r all)")]
    Damaged(&'static str),
    /// A number that cannot be.
    #[error("is damaged: {0}; repair it (qemu-img check -r all), or use a copy that is whole")]
    Impossible(&'static str),
}

/// Bits of `incompatible_features`.
mod incompatible {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 2;
    pub const DATA_FILE: u64 = 4;
    pub const COMPRESSION_TYPE: u64 = 8;
    pub const EXTENDED_L2: u64 = 16;
}

/// Most bytes of tables that are kept in memory: QEMU's own limits for the L1 and the refcount table.
const MOST_L1_BYTES: u64 = 32 << 20;
const MOST_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// What of a header matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Binary logarithm of the bytes in a cluster: 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the L1 table is.
    pub l1_offset: u64,
    /// Entries of the L1 table that the disk needs.
    pub l1_entries: u32,
    /// Where the refcount table is.
    pub refcount_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_clusters: u32,
    /// Binary logarithm of the bits in a refcount: 0 to 6.
    pub refcount_order: u32,
    /// Where the name of the backing file is, and its length; `None` if there is none.
    pub backing_name: Option<(u64, u32)>,
    /// Whether a feature is on that whoever writes and does not know it has to switch off.
    pub autoclear: bool,
}

impl Header {
    /// Bytes in a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters whose places an L2 table has.
    pub fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// Clusters whose refcounts a refcount block has.
    pub fn refcounts_per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// Parses the first bytes of an image, for reading only or for writing too. What is missing at the end of `bytes` is
    /// zero.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn parse(bytes: &[u8], writable: bool) -> Result<Self, HeaderError> {
        let mut whole = [0; HEADER_BYTES];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        let u32_at = |at: usize| {
            let field = whole
                .get(at..at + 4)
                .and_then(|field| field.try_into().ok());
            field.map_or(0, u32::from_be_bytes)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if whole.get(..4) != Some(b"QFI\xfb") {
            return Err(HeaderError::Magic);
        }
        let version = u32_at(4);
        if version != 2 && version != 3 {
            return Err(HeaderError::Version(version));
        }
        let impossible = |what| Err(HeaderError::Impossible(what));
        let (incompatible, autoclear, refcount_order, length) = match version {
            3 => (u64_at(72), u64_at(88), u32_at(96), u32_at(100)),
            _ => (0, 0, 4, 72),
        };
        check_features(incompatible, writable)?;
        // Beyond the known fields, the length says whether there is a compression type.
        if length > 104 && whole.get(104).is_some_and(|kind| *kind != 0) {
            return Err(HeaderError::Unsupported("has clusters compressed by zstd"));
        }
        if u32_at(32) != 0 {
            return Err(HeaderError::Unsupported("is encrypted"));
        }
        let cluster_bits = u32_at(20);
        if !(9..=21).contains(&cluster_bits) {
            return impossible("its cluster size");
        }
        if refcount_order > 6 {
            return impossible("its refcounts' width");
        }
        let backing_name = match (u64_at(8), u32_at(16)) {
            (0, _) => None,
            (at, len) if len <= 1023 => Some((at, len)),
            _ => return impossible("its backing file's name"),
        };
        let header = Self {
            version,
            cluster_bits,
            size: u64_at(24),
            l1_offset: u64_at(40),
            l1_entries: 0,
            refcount_offset: u64_at(48),
            refcount_clusters: u32_at(56),
            refcount_order,
            backing_name,
            autoclear: autoclear != 0,
        };
        let per_table = header.cluster() * header.l2_entries();
        let needed = header.size.div_ceil(per_table);
        if needed > u64::from(u32_at(36)) || needed * 8 > MOST_L1_BYTES {
            return impossible("its size is beyond its L1 table");
        }
        let aligned = |offset: u64| offset.is_multiple_of(header.cluster()) && offset >> 56 == 0;
        if !aligned(header.l1_offset) || (needed > 0 && header.l1_offset == 0) {
            return impossible("its L1 table's place");
        }
        let table = u64::from(header.refcount_clusters) << cluster_bits;
        if !aligned(header.refcount_offset)
            || (writable && (header.refcount_offset == 0 || table == 0))
            || table > MOST_REFCOUNT_TABLE_BYTES.max(header.cluster())
        {
            return impossible("its refcount table's place");
        }
        Ok(Self {
            l1_entries: needed as u32,
            ..header
        })
    }
}

fn check_features(features: u64, writable: bool) -> Result<(), HeaderError> {
    let has = |bit: u64| features & bit != 0;
    let known = incompatible::DIRTY
        | incompatible::CORRUPT
        | incompatible::DATA_FILE
        | incompatible::COMPRESSION_TYPE
        | incompatible::EXTENDED_L2;
    let refuse = |what| Err(HeaderError::Unsupported(what));
    if has(!known) {
        return refuse("has features that are not known");
    }
    if has(incompatible::DATA_FILE) {
        return refuse("keeps its data in another file");
    }
    if has(incompatible::EXTENDED_L2) {
        return refuse("has subclusters (extended_l2)");
    }
    if has(incompatible::COMPRESSION_TYPE) {
        return refuse("has clusters compressed by zstd");
    }
    if writable && has(incompatible::CORRUPT) {
        return Err(HeaderError::Damaged("is marked as corrupt"));
    }
    if writable && has(incompatible::DIRTY) {
        return Err(HeaderError::Damaged("was not closed after it was written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As `qemu-img create` makes it, 1 GiB.
    fn good() -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(1_u64 << 30).to_be_bytes());
        put(36, &2_u32.to_be_bytes());
        put(40, &0x3_0000_u64.to_be_bytes());
        put(48, &0x1_0000_u64.to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &112_u32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_good_header() {
        let header = Header::parse(&good(), true).unwrap();
        assert_eq!((header.version, header.cluster()), (3, 65536));
        assert_eq!((header.size, header.l1_entries), (1 << 30, 2));
        assert_eq!(header.refcounts_per_block(), 32768);
        assert_eq!(header.backing_name, None);
    }

    #[test]
    fn what_is_refused() {
        let with = |at: usize, field: &[u8]| {
            let mut bytes = good();
            bytes[at..at + field.len()].copy_from_slice(field);
            Header::parse(&bytes, true)
                .err()
                .map(|error| error.to_string())
        };
        for (what, at, field, expected) in [
            ("magic", 0, &b"QFI\0"[..], "not in the format"),
            ("version", 4, &[0, 0, 0, 4], "version 4"),
            ("cluster size", 20, &[0, 0, 0, 22], "cluster size"),
            ("cluster size", 20, &[0, 0, 0, 8], "cluster size"),
            ("cluster size", 20, &[0xff; 4], "cluster size"),
            ("size", 24, &[0, 1], "L1 table"),
            ("size", 24, &[0xff; 8], "L1 table"),
            ("encrypted", 32, &[0, 0, 0, 2], "encrypted"),
            ("no L1", 36, &[0; 4], "L1 table"),
            ("L1 place", 47, &[1], "L1 table's place"),
            ("L1 place", 40, &[0; 8], "L1 table's place"),
            ("refcount place", 55, &[1], "refcount table's place"),
            ("refcount size", 56, &[0xff; 4], "refcount table's place"),
            ("no refcounts", 56, &[0; 4], "refcount table's place"),
            ("dirty", 79, &[1], "not closed"),
            ("corrupt", 79, &[2], "corrupt"),
            ("data file", 79, &[4], "another file"),
            ("zstd", 79, &[8], "zstd"),
            ("zstd", 104, &[1], "zstd"),
            ("subclusters", 79, &[16], "subclusters"),
            ("unknown", 72, &[0x80], "not known"),
            ("width", 99, &[7], "width"),
            (
                "backing",
                8,
                &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 4, 0],
                "backing",
            ),
        ] {
            let error = with(at, field).unwrap_or_default();
            assert!(error.contains(expected), "{what}: {error}");
        }
        assert!(Header::parse(&[], false).is_err());
        // For reading only, refcounts do not matter.
        let mut dirty = good();
        dirty[79] = 1;
        assert!(Header::parse(&dirty, false).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_an_error(
            noise in prop::collection::vec((0_usize..HEADER_BYTES, any::<u8>()), 0..12),
            writable: bool,
        ) {
            let mut bytes = good();
            for (at, byte) in noise {
                bytes[at] = byte;
            }
            if let Ok(header) = Header::parse(&bytes, writable) {
                prop_assert!(u64::from(header.l1_entries) * 8 <= MOST_L1_BYTES);
                prop_assert!(header.refcounts_per_block() >= 64);
                let reach = u128::from(header.l1_entries) * u128::from(header.cluster() * header.l2_entries());
                prop_assert!(reach >= u128::from(header.size));
            }
        }
    }
}
