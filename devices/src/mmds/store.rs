//! The document: one JSON object.

use std::io::{self, Write};

use serde_json::{Map, Value};

/// Why the document was not changed. The words are Firecracker's, where it has some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is nothing to be patched.
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
    /// It would have more bytes of JSON than it may.
    #[error("The MMDS patch request doesn't fit.")]
    TooLarge,
    /// Only an object has keys that a guest could ask for.
    #[error("The MMDS data store must be a JSON object.")]
    NotAnObject,
}

/// Why a guest does not get what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetError {
    /// Nothing is there.
    NotFound,
    /// It is neither object nor string, and the guest wants plain text.
    NoText,
}

/// How a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As JSON.
    Json,
    /// As EC2's metadata service does: a string as it is, an object as its keys, a line for each, those of objects with a
    /// slash behind them.
    Imds,
}

/// The document and its limit.
#[derive(Debug)]
pub struct Store {
    document: Option<Value>,
    /// Bytes of JSON.
    limit: usize,
}

impl Store {
    pub fn new(limit: usize) -> Self {
        Self {
            document: None,
            limit,
        }
    }

    pub fn document(&self) -> Option<&Value> {
        self.document.as_ref()
    }

    pub fn put(&mut self, document: Value) -> Result<(), StoreError> {
        if !document.is_object() {
            return Err(StoreError::NotAnObject);
        }
        if !fits(&document, self.limit) {
            return Err(StoreError::TooLarge);
        }
        self.document = Some(document);
        Ok(())
    }

    pub fn patch(&mut self, patch: &Value) -> Result<(), StoreError> {
        let Some(document) = &self.document else {
            return Err(StoreError::NotInitialized);
        };
        if !patch.is_object() {
            return Err(StoreError::NotAnObject);
        }
        // On a copy: what does not fit changes nothing.
        let mut patched = document.clone();
        merge(&mut patched, patch);
        self.put(patched)
    }

    /// What is at `path`: keys with slashes between them, of which several count as one; a last one counts for nothing.
    pub fn get(&self, path: &str, format: Format) -> Result<String, GetError> {
        let document = self.document.as_ref().ok_or(GetError::NotFound)?;
        let mut pointer = String::with_capacity(path.len());
        for character in path.chars() {
            if character != '/' || !pointer.ends_with('/') {
                pointer.push(character);
            }
        }
        let pointer = pointer.strip_suffix('/').unwrap_or(&pointer);
        let value = document.pointer(pointer).ok_or(GetError::NotFound)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Imds, Value::String(text)) => Ok(text.clone()),
            (Format::Imds, Value::Object(object)) => Ok(keys(object)),
            (Format::Imds, _) => Err(GetError::NoText),
        }
    }
}

fn keys(object: &Map<String, Value>) -> String {
    let lines: Vec<_> = object
        .iter()
        .map(|(key, value)| format!("{key}{}", if value.is_object() { "/" } else { "" }))
        .collect();
    lines.join("\n")
}

/// RFC 7396, section 2. Documents are no deeper than the JSON parser lets them be (128), and no patch makes them deeper.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// Whether it has no more bytes of JSON than `limit`. It need not be written for that.
fn fits(document: &Value, limit: usize) -> bool {
    struct Room(usize);
    impl Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let left = self.0.checked_sub(bytes.len());
            self.0 = left.ok_or(io::ErrorKind::WriteZero)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(Room(limit), document).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store(document: Value) -> Store {
        let mut store = Store::new(1000);
        store.put(document).unwrap();
        store
    }

    #[test]
    fn a_patch_is_as_in_the_rfc() {
        // RFC 7396, appendix A, as members of an object.
        for (original, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut store = store(original.clone());
            store.patch(&patch).unwrap();
            assert_eq!(store.document(), Some(&result), "{original} {patch}");
        }
    }

    #[test]
    fn what_is_not_taken_changes_nothing() {
        let mut store = Store::new(20);
        assert_eq!(store.patch(&json!({})), Err(StoreError::NotInitialized));
        for bad in [json!(null), json!("x"), json!([{}]), json!(1)] {
            assert_eq!(store.put(bad), Err(StoreError::NotAnObject));
        }
        assert_eq!(store.document(), None);
        let fits = json!({"key": "01234567890"});
        assert_eq!(fits.to_string().len(), 21);
        assert_eq!(store.put(fits), Err(StoreError::TooLarge));
        let fits = json!({"key": "0123456789"});
        store.put(fits.clone()).unwrap();
        assert_eq!(store.patch(&json!({"a": 1})), Err(StoreError::TooLarge));
        assert_eq!(store.patch(&json!(["a"])), Err(StoreError::NotAnObject));
        assert_eq!(store.document(), Some(&fits));
        store
            .patch(&json!({"key": null, "a": "012345678901"}))
            .unwrap();
    }

    #[test]
    fn a_path_leads_to_a_value() {
        let store = store(json!({
            "latest": {"meta-data": {"ami-id": "ami-1", "a/b": "c", "m~n": "o"}, "user-data": "text\nlines"},
            "list": ["x", 2], "number": 43, "nothing": null, "yes": true
        }));
        let text = |path| store.get(path, Format::Imds);
        let json = |path| store.get(path, Format::Json);
        for root in ["", "/", "//", "///"] {
            let keys = "latest/\nlist\nnothing\nnumber\nyes";
            assert_eq!(text(root).as_deref(), Ok(keys), "{root}");
        }
        for path in ["/latest", "/latest/", "//latest//", "////latest"] {
            assert_eq!(text(path).as_deref(), Ok("meta-data/\nuser-data"), "{path}");
        }
        for path in ["/latest/meta-data/ami-id", "/latest//meta-data/ami-id/"] {
            assert_eq!(text(path).as_deref(), Ok("ami-1"));
            assert_eq!(json(path).as_deref(), Ok("\"ami-1\""));
        }
        assert_eq!(text("/latest/user-data").as_deref(), Ok("text\nlines"));
        assert_eq!(json("/latest/user-data").as_deref(), Ok(r#""text\nlines""#));
        assert_eq!(text("/latest/meta-data/a~1b").as_deref(), Ok("c"));
        assert_eq!(text("/latest/meta-data/m~0n").as_deref(), Ok("o"));
        assert_eq!(text("/list/0").as_deref(), Ok("x"));
        assert_eq!(json("/list").as_deref(), Ok(r#"["x",2]"#));
        assert_eq!(json("/number").as_deref(), Ok("43"));
        for path in ["/list", "/list/1", "/number", "/nothing", "/yes"] {
            assert_eq!(text(path), Err(GetError::NoText), "{path}");
        }
        for path in [
            "/x",
            "/list/2",
            "/latest/meta-data/ami-id/x",
            "latest",
            "/%6catest",
        ] {
            assert_eq!(text(path), Err(GetError::NotFound), "{path}");
        }
        assert_eq!(
            Store::new(9).get("/", Format::Json),
            Err(GetError::NotFound)
        );
    }
}
