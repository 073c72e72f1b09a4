//! YAML with positions. A file becomes a tree whose every key and value knows its line; [`Section`] takes keys out of a
//! mapping one by one and collects what is wrong, so that the operator sees all mistakes at once.
//! Knows nothing of what the keys mean: that is `super::read`'s business.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Where in the file: one-based line and column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}, column {}", self.line, self.column)
    }
}

/// One mistake, with its place where the file has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) place: Option<Place>,
    pub(crate) text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(out, "{place}: {}", self.text),
            None => out.write_str(&self.text),
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// YAML's values, as far as configuration needs them.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Bool(bool),
    List(Vec<Node>),
    Map(Vec<(String, Place, Node)>),
    Null,
    /// Numbers keep their text: a port and a name `3080` are told apart by what reads them.
    Text(String),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Map(_) => "a section",
            Self::Null => "nothing",
            Self::Text(_) => "text",
        }
    }
}

fn place(location: serde_saphyr::Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(from)?;
        Ok(Self { place: place(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a YAML value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Text(value.to_string()))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        Value::deserialize(from)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Node>()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<String>, Node>()? {
            map.push((key.value, place(key.referenced), value));
        }
        Ok(Value::Map(map))
    }
}

/// A mapping whose keys are taken out one by one; [`Section::finish`] reports those that nobody took.
#[derive(Debug)]
pub(crate) struct Section<'m> {
    /// `proxy_service`, for messages.
    path: String,
    keys: Vec<(String, Place, Node)>,
    mistakes: &'m mut Vec<Mistake>,
    known: Vec<&'static str>,
}

impl<'m> Section<'m> {
    /// `node` as a mapping; anything else is a mistake and an empty section.
    pub(crate) fn new(path: &str, node: Node, mistakes: &'m mut Vec<Mistake>) -> Self {
        let keys = match node.value {
            Value::Map(keys) => keys,
            Value::Null => Vec::new(),
            value @ (Value::Bool(_) | Value::List(_) | Value::Text(_)) => {
                mistakes.push(Mistake {
                    place: Some(node.place),
                    text: format!("{path} must be a section, not {}", value.kind()),
                });
                Vec::new()
            }
        };
        Self { path: path.to_owned(), keys, mistakes, known: Vec::new() }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn mistake(&mut self, place: Place, text: String) {
        self.mistakes.push(Mistake { place: Some(place), text });
    }

    /// The value of `key`, if it is there.
    pub(crate) fn node(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let index = self.keys.iter().position(|(name, ..)| name == key)?;
        Some(self.keys.remove(index).2)
    }

    /// A section below.
    pub(crate) fn section<R>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> R,
    ) -> Option<R> {
        let node = self.node(key)?;
        let path = self.full(key);
        let mut section = Section::new(&path, node, self.mistakes);
        let result = read(&mut section);
        section.finish();
        Some(result)
    }

    /// Text, parsed by `parse`, whose error is the mistake.
    pub(crate) fn text<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let node = self.node(key)?;
        let text = match node.value {
            Value::Text(text) => text,
            Value::Bool(value) => value.to_string(),
            value @ (Value::List(_) | Value::Map(_) | Value::Null) => {
                let text = format!("{} must be text, not {}", self.full(key), value.kind());
                self.mistake(node.place, text);
                return None;
            }
        };
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                let text = format!("{}: {error}", self.full(key));
                self.mistake(node.place, text);
                None
            }
        }
    }

    /// `yes`, `no`, `true`, `false`, `on`, `off`.
    pub(crate) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.text(key, |text| match text {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            other => Err(format!("must be yes or no, not {other:?}")),
        })
    }

    /// One text or a list of them.
    pub(crate) fn texts<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let node = self.node(key)?;
        let items = match node.value {
            Value::List(items) => items,
            value @ (Value::Text(_) | Value::Bool(_)) => vec![Node { place: node.place, value }],
            value @ (Value::Map(_) | Value::Null) => {
                let text = format!("{} must be a list, not {}", self.full(key), value.kind());
                self.mistake(node.place, text);
                return None;
            }
        };
        let mut values = Vec::new();
        for item in items {
            match item.value {
                Value::Text(text) => match parse(&text) {
                    Ok(value) => values.push(value),
                    Err(error) => {
                        let text = format!("{}: {error}", self.full(key));
                        self.mistake(item.place, text);
                    }
                },
                value @ (Value::Bool(_) | Value::List(_) | Value::Map(_) | Value::Null) => {
                    let text = format!("{} holds texts, not {}", self.full(key), value.kind());
                    self.mistake(item.place, text);
                }
            }
        }
        Some(values)
    }

    /// A mapping of free names to texts, such as labels.
    pub(crate) fn pairs(&mut self, key: &'static str) -> Option<Vec<(String, String)>> {
        let node = self.node(key)?;
        let path = self.full(key);
        let section = Section::new(&path, node, self.mistakes);
        let mut pairs = Vec::new();
        for (name, place, value) in section.keys {
            match value.value {
                Value::Text(text) => pairs.push((name, text)),
                Value::Bool(value) => pairs.push((name, value.to_string())),
                value @ (Value::List(_) | Value::Map(_) | Value::Null) => {
                    section.mistakes.push(Mistake {
                        place: Some(place),
                        text: format!("{path}.{name} must be text, not {}", value.kind()),
                    });
                }
            }
        }
        Some(pairs)
    }

    /// Reports the keys that nobody asked for.
    pub(crate) fn finish(self) {
        for (name, place, _) in self.keys {
            let full = if self.path.is_empty() { name } else { format!("{}.{name}", self.path) };
            let text = format!("unknown key {full}; known here: {}", self.known.join(", "));
            self.mistakes.push(Mistake { place: Some(place), text });
        }
    }
}

/// Parses a file's text into a tree.
///
/// # Errors
/// Not YAML; the message has the place.
pub(crate) fn parse(text: &str) -> Result<Node, Mistake> {
    if text.trim().is_empty() {
        return Ok(Node { place: Place { line: 1, column: 1 }, value: Value::Null });
    }
    serde_saphyr::from_str::<Node>(text)
        .map_err(|error| Mistake { place: None, text: format!("not valid YAML: {error}") })
}
