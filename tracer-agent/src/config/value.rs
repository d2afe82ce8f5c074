//! Values of the configuration that know what they take.

use std::{borrow::Cow, fmt, marker::PhantomData, net::SocketAddr, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error, SeqAccess, Visitor,
        value::{I64Deserializer, StrDeserializer, U64Deserializer},
    },
};

use crate::{
    filter,
    protocol::{exchanges, is_token},
};

/// `30s`, `500ms`, `2m`, `1h`; a number alone is seconds.
pub fn parse_period(text: &str) -> Result<Duration, String> {
    let digits = text.find(|char: char| !(char.is_ascii_digit() || char == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit of time; use ms, s, m or h")),
    };
    number
        .parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * scale).ok())
        .ok_or_else(|| format!("`{text}` is no duration; say for example 30s"))
}

/// `64KiB`, `8MiB`, `1GiB`, and as in Kubernetes `8Mi`; a number alone is bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "" => 1u64,
        "KiB" | "Ki" | "K" | "k" => 1 << 10,
        "MiB" | "Mi" | "M" => 1 << 20,
        "GiB" | "Gi" | "G" => 1 << 30,
        _ => return Err(format!("`{unit}` is no unit of size; use KiB, MiB or GiB")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale))
        .ok_or_else(|| format!("`{text}` is no size; say for example 8MiB"))
}

/// Types that are read from a text or a number, and what the schema says of them.
macro_rules! read_from_text {
    ($($type:ident, $schema:tt;)*) => { $(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )* };
}

read_from_text! {
    Address, { "type": "string", "examples": ["127.0.0.1:9464", "[::1]:9464"] };
    Header, { "type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$" };
    Pattern, { "type": ["string", "number"], "minLength": 1, "examples": ["nginx", "python*"] };
    Percent, { "type": "string", "pattern": "^[0-9.]+(%|m)?$", "examples": ["10%", "100m"] };
    Period, { "type": ["string", "number"], "pattern": "^[0-9.]+(ms|s|m|h)?$", "examples": ["30s", "500ms"] };
    ProtocolName, { "type": "string", "enum": exchanges() };
    RoutePattern, { "type": "string", "pattern": "^/", "examples": ["/users/{id}/orders"] };
    Secret, { "type": "string" };
    Share, { "type": ["string", "number"], "pattern": "^[0-9.]+%?$", "examples": [0.1, "10%"] };
    Size, { "type": ["string", "integer"], "pattern": "^[0-9]+([KMG](i|iB)?|k)?$", "examples": ["96Mi", "1GiB"] };
}

/// Where somebody can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("`{text}` is no IP address with a port; say for example 127.0.0.1:9464");
        text.parse().map(Self).map_err(wrong)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a header, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Header(pub String);

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fine = !text.is_empty() && text.bytes().all(is_token);
        fine.then(|| Self(text.to_ascii_lowercase()))
            .ok_or_else(|| format!("`{text}` is no name of a header"))
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name or a path, as it is or with `*`, `?`, `[…]` and `{…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(pub String);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern matches nothing".to_owned());
        }
        filter::glob(text).map(|_| Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hundredths of a percent of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u32);

impl Percent {
    pub fn cores(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, scale) = match text.as_bytes().last() {
            Some(b'%') => (&text[..text.len() - 1], 100.0),
            // Thousandths of a core, as Kubernetes has them.
            Some(b'm') => (&text[..text.len() - 1], 10.0),
            _ => (text, 10_000.0),
        };
        let parts = number.trim().parse::<f64>().ok().map(|number| (number * scale).round());
        parts
            .filter(|parts| (10.0..=1_000_000.0).contains(parts))
            .map(|parts| Self(parts as u32))
            .ok_or_else(|| format!("`{text}` is no share of a core; say for example 10% or 100m"))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 100.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_period(text)? {
            Duration::ZERO => Err("no time at all: say for example 10s".to_owned()),
            time => Ok(Self(time)),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

/// As the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolName(pub &'static str);

impl FromStr for ProtocolName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = exchanges();
        known.get(text).map(|name| Self(name)).ok_or_else(|| {
            let known: Vec<_> = known.into_iter().collect();
            format!("`{text}` is no protocol that is read; there are {}", known.join(", "))
        })
    }
}

impl fmt::Display for ProtocolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A path with places: `/users/{id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePattern(pub String);

impl FromStr for RoutePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::route::Pattern::from_str(text)
            .map(|_| Self(text.to_owned()))
            .map_err(|error| error.to_string())
    }
}

impl fmt::Display for RoutePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// From 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

impl Share {
    pub const ALL: Self = Self(1.0);
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
        let share = number.trim().parse::<f64>().ok().map(|number| number / scale);
        share
            .filter(|share| (0.0..=1.0).contains(share))
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no share from 0 to 1; say for example 0.1 or 10%"))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Values, or one alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Values(PhantomData))
    }
}

struct Values<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, or a list of values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<List<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(List(list))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<List<T>, E> {
        // A name can be a number.
        let text = || T::deserialize(StrDeserializer::<E>::new(&value.to_string()));
        T::deserialize(U64Deserializer::<E>::new(value)).or_else(|error| text().map_err(|_| error)).map(one)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<List<T>, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => T::deserialize(I64Deserializer::<E>::new(value)).map(one),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<List<T>, E> {
        T::deserialize(StrDeserializer::<E>::new(value)).map(one)
    }
}

fn one<T>(value: T) -> List<T> {
    List(vec![value])
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("ListOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [value, { "type": "array", "items": value }] })
    }
}
