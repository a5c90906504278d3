//! Serialisation of message fields the way a person wants to read them.

use serde::Serializer;

use super::CriuEnum;

/// A value that is best read in hexadecimal.
pub trait Hex {
    /// Serialises the value as one string, or as a list of strings.
    fn serialize_hex<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}

/// `serialize_with` for addresses, masks and raw bytes.
pub fn hex<T: Hex, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.serialize_hex(serializer)
}

/// `serialize_with` for a required enum field: its name, or the number where it has none.
pub fn name<E: CriuEnum, S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    match E::name(*value) {
        Some(name) => serializer.serialize_str(name),
        None => serializer.serialize_i32(*value),
    }
}

/// `serialize_with` for an optional enum field.
pub fn optional_name<E: CriuEnum, S: Serializer>(
    value: &Option<i32>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => name::<E, S>(value, serializer),
        None => serializer.serialize_none(),
    }
}

impl Hex for u32 {
    fn serialize_hex<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:#x}"))
    }
}

impl Hex for u64 {
    fn serialize_hex<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:#x}"))
    }
}

impl<T: Hex> Hex for Option<T> {
    fn serialize_hex<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Some(value) => value.serialize_hex(serializer),
            None => serializer.serialize_none(),
        }
    }
}

impl Hex for Vec<u64> {
    fn serialize_hex<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|word| format!("{word:#x}")))
    }
}

impl Hex for Vec<u8> {
    fn serialize_hex<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(self.len() * 2);
        for byte in self {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('?'));
            }
        }
        serializer.serialize_str(&text)
    }
}

impl Hex for Vec<Vec<u8>> {
    fn serialize_hex<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Bytes<'a>(&'a Vec<u8>);
        impl serde::Serialize for Bytes<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize_hex(serializer)
            }
        }
        serializer.collect_seq(self.iter().map(Bytes))
    }
}
