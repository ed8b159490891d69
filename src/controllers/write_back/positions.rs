//! Where in the text of a YAML or JSON file each value stands. Pure.
//!
//! Aliases are not followed: whoever changes a text has to know that the value is written elsewhere.

use std::collections::BTreeSet;
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// What it holds.
    pub(super) root: Node,
    /// The anchors that an alias names.
    pub(super) aliased: BTreeSet<usize>,
}

/// One value in the text.
#[derive(Debug)]
pub(super) struct Node {
    /// Its bytes, without tag, anchor and the header of a block scalar. Of a block collection, from the first key or
    /// dash to the end of the last value.
    pub(super) bytes: Range<usize>,
    /// Where its tag begins, if it has one.
    pub(super) tag: Option<usize>,
    /// The number of its anchor; 0 for none.
    pub(super) anchor: usize,
    /// What it is.
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Kind {
    /// One value, and what it reads as.
    Scalar { style: ScalarStyle, text: String },
    /// A mapping, with its keys in the order of the text.
    Mapping { flow: bool, entries: Vec<(Node, Node)> },
    /// A sequence.
    Sequence { flow: bool, items: Vec<Node> },
    /// The name of another value.
    Alias,
}

impl Node {
    /// The text of a scalar that is written here.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The value of a key that is written here.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Mapping { entries, .. } => {
                entries.iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// Nothing is written where a value could stand: `key:`.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.kind, Kind::Scalar { style: ScalarStyle::Plain, .. }) && self.bytes.is_empty()
    }

    /// Written over lines of their own, by indentation.
    pub(super) fn is_block_scalar(&self) -> bool {
        matches!(self.kind, Kind::Scalar { style: ScalarStyle::Literal | ScalarStyle::Folded, .. })
    }

    /// Whether an anchor or an alias stands in it.
    pub(super) fn has_names(&self) -> bool {
        self.anchor != 0
            || match &self.kind {
                Kind::Scalar { .. } => false,
                Kind::Alias => true,
                Kind::Mapping { entries, .. } => {
                    entries.iter().any(|(key, value)| key.has_names() || value.has_names())
                }
                Kind::Sequence { items, .. } => items.iter().any(Node::has_names),
            }
    }
}

/// The documents of a text, or why it is none.
pub(super) fn documents(text: &str) -> Result<Vec<Document>, String> {
    let options = granit_parser::options! { emit_comments: false };
    let mut reader =
        Reader { text, events: Parser::new_from_str_with_options(text, options), aliased: BTreeSet::new() };
    let mut documents = Vec::new();
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(documents),
            (Event::DocumentStart(..), _) => {
                let root = reader.node()?;
                documents.push(Document { root, aliased: std::mem::take(&mut reader.aliased) });
            }
            _ => {}
        }
    }
}

struct Reader<'a, Events> {
    text: &'a str,
    events: Events,
    aliased: BTreeSet<usize>,
}

impl<'a, Events> Reader<'a, Events>
where
    Events: Iterator<Item = Result<(Event<'a>, Span), granit_parser::ScanError>>,
{
    fn next(&mut self) -> Result<(Event<'a>, Range<usize>), String> {
        self.spanned().map(|(event, span, _)| (event, span))
    }

    fn spanned(&mut self) -> Result<(Event<'a>, Range<usize>, Option<usize>), String> {
        let next = self.events.next().ok_or_else(|| "ends early".to_owned())?;
        let (event, span) = next.map_err(|error| error.to_string())?;
        let bytes = span.byte_range().filter(|bytes| self.text.get(bytes.clone()).is_some());
        let bytes = bytes.ok_or_else(|| "has no positions".to_owned())?;
        Ok((event, bytes, span.tag_start.and_then(|tag| tag.byte_offset())))
    }

    fn node(&mut self) -> Result<Node, String> {
        let (event, bytes, tag) = self.spanned()?;
        self.node_of(event, bytes, tag)
    }

    fn node_of(&mut self, event: Event<'a>, bytes: Range<usize>, tag: Option<usize>) -> Result<Node, String> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let bytes = self.without_next_line(bytes, style);
                Ok(Node { bytes, tag, anchor, kind: Kind::Scalar { style, text: text.into_owned() } })
            }
            Event::Alias(anchor) => {
                self.aliased.insert(anchor);
                Ok(Node { bytes, tag, anchor: 0, kind: Kind::Alias })
            }
            Event::SequenceStart(style, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.spanned()? {
                        (Event::SequenceEnd, end, _) => {
                            let flow = style == StructureStyle::Flow;
                            let last = items.last().map(|item: &Node| item.bytes.end);
                            let bytes = bytes.start..if flow { end.end } else { last.unwrap_or(bytes.end) };
                            return Ok(Node { bytes, tag, anchor, kind: Kind::Sequence { flow, items } });
                        }
                        (event, bytes, tag) => items.push(self.node_of(event, bytes, tag)?),
                    }
                }
            }
            Event::MappingStart(style, anchor, _) => {
                let mut entries = Vec::new();
                loop {
                    match self.spanned()? {
                        (Event::MappingEnd, end, _) => {
                            let flow = style == StructureStyle::Flow;
                            let last = entries.last().map(|(_, value): &(Node, Node)| value.bytes.end);
                            let bytes = bytes.start..if flow { end.end } else { last.unwrap_or(bytes.end) };
                            return Ok(Node { bytes, tag, anchor, kind: Kind::Mapping { flow, entries } });
                        }
                        (event, bytes, tag) => {
                            let key = self.node_of(event, bytes, tag)?;
                            let mut value = self.node()?;
                            if value.is_empty() {
                                // An absent value has no place of its own; it ends where its key does.
                                value.bytes = key.bytes.end..key.bytes.end;
                            }
                            entries.push((key, value));
                        }
                    }
                }
            }
            other => Err(format!("has {other:?} where a value should stand")),
        }
    }

    /// The span of a block scalar goes on to the first letter of what follows. Its last line break is left out, and
    /// so are the empty lines after it, unless they are part of the value.
    fn without_next_line(&self, bytes: Range<usize>, style: ScalarStyle) -> Range<usize> {
        if !matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
            return bytes;
        }
        let header = self.text[..bytes.start].trim_end();
        let header = &header[line_start(header)..];
        let header = header.split(" #").next().unwrap_or(header);
        let kept = header.rsplit(['|', '>']).next().is_some_and(|header| header.contains('+'));
        let mut text = &self.text[bytes.clone()];
        if text[line_start(text)..].trim().is_empty() {
            // The indentation of what follows.
            text = &text[..line_start(text)];
        }
        text = without_break(text);
        while !kept && text.contains('\n') && text[line_start(text)..].trim().is_empty() {
            text = without_break(&text[..line_start(text)]);
        }
        bytes.start..bytes.start + text.len()
    }
}

/// Where the last line of a text begins.
pub(super) fn line_start(text: &str) -> usize {
    text.rfind('\n').map_or(0, |at| at + 1)
}

fn without_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(text: &'a str, path: &[&str]) -> &'a str {
        let documents = documents(text).unwrap();
        let node = path.iter().fold(&documents[0].root, |node, key| match &node.kind {
            Kind::Sequence { items, .. } => &items[key.parse::<usize>().unwrap()],
            _ => node.get(key).unwrap(),
        });
        &text[node.bytes.clone()]
    }

    #[test]
    fn each_value_is_found_without_what_stands_around_it() {
        let text = "\u{feff}a: b  # c\r\nk:\n  x: |\n    one\n\n    two\n\n  # y\n  y: >+\n    q\n\n\ng:\n- n: 'ü'\n  \
                    m: &a 2\n-\n  # c\n  n: !!str 3\n- *a\n- {a: \"1\",\n   b: [x,y]} # d\n- plain\n  multi\ne:\nz: |-\n  end";
        assert_eq!(read(text, &["a"]), "b");
        assert_eq!(read(text, &["k"]), "x: |\n    one\n\n    two\n\n  # y\n  y: >+\n    q\n\n");
        assert_eq!(read(text, &["k", "x"]), "one\n\n    two");
        assert_eq!(read(text, &["k", "y"]), "q\n\n");
        assert_eq!(read(text, &["g", "0"]), "n: 'ü'\n  m: &a 2");
        assert_eq!(read(text, &["g", "1"]), "n: !!str 3");
        assert_eq!(read(text, &["g", "3", "b"]), "[x,y]");
        assert_eq!(read(text, &["g", "4"]), "plain\n  multi");
        assert_eq!(read(text, &["e"]), "");
        assert_eq!(read(text, &["z"]), "end");
        assert_eq!(documents(text).unwrap()[0].aliased, BTreeSet::from([1]));
    }

    #[test]
    fn json_and_several_documents_have_positions_too() {
        assert_eq!(
            read("{\n\t\"a\": {\r\n\t\t\"b\": \"c\\u00e4\"\n\t},\n\t\"d\": []\n}\n", &["a", "b"]),
            "\"c\\u00e4\""
        );
        let several = documents("a: 1\n--- # x\nb: 2\n...\n---\n# only\n---\nc: 3").unwrap();
        assert_eq!(several.len(), 4);
        assert!(several[2].root.is_empty());
        assert!(documents("a: [").is_err() && documents("a: *none").is_err());
    }
}
