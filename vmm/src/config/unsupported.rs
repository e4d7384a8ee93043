//! A section that is known and cannot be honoured yet.

use std::fmt;

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Takes `null` and `[]`, which ask for nothing, and refuses all else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsupported;

/// The section never says anything, so it is never written.
pub fn absent(_section: &Unsupported) -> bool {
    true
}

impl Serialize for Unsupported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NothingAsked)
    }
}

struct NothingAsked;

impl NothingAsked {
    fn refuse<E: de::Error>() -> E {
        E::custom("Tandem does not have yet what this section asks for; remove the section")
    }
}

impl<'de> Visitor<'de> for NothingAsked {
    type Value = Unsupported;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("nothing: Tandem does not have yet what this section asks for")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Unsupported, E> {
        Ok(Unsupported)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unsupported, A::Error> {
        match seq.next_element::<de::IgnoredAny>()? {
            None => Ok(Unsupported),
            Some(_) => Err(Self::refuse()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, _map: A) -> Result<Unsupported, A::Error> {
        Err(Self::refuse())
    }
}
