//! Puts single values in the text of a manifest back, and leaves every other byte as it is. Pure.
//!
//! Two texts are walked together: that of the branch's tip and the good one. Where their values differ, the smallest
//! piece of text that can be exchanged is: a scalar, an entry with the lines that belong to it, at worst a whole list
//! or mapping. Nobody has to trust this walk: what comes out is read again and compared by value, see `restore`.

use std::collections::BTreeSet;
use std::ops::Range;

use granit_parser::ScalarStyle;
use serde_json::Value;

use super::positions::{Kind, Node, line_start};
use super::restore::NotLiteral;
use crate::api::canonical_json;

/// Without the good text, only what is one value there and here can be written.
pub(super) const NOT_SINGLE: &str =
    "has changed in more than single values, and the commit that had the good ones is not to be had";
/// Lists whose alignment would take more steps than this are exchanged as a whole.
const MOST_STEPS: usize = 1_000_000;

/// One text, as a side of the comparison.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    /// The file's text.
    pub(super) text: &'a str,
    /// Only JSON may stand in it.
    pub(super) json: bool,
}

/// The edits that turn the tip's values into the good ones.
pub(super) struct Splice<'a> {
    tip: Side<'a>,
    good: Option<Side<'a>>,
    /// Anchors of the tip's document that an alias names.
    aliased: &'a BTreeSet<usize>,
    edits: Vec<(Range<usize>, String)>,
    fields: Vec<String>,
}

/// Where a value stands: after a colon or a dash.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    node: &'a Node,
    /// Just after the colon or the dash.
    start: usize,
    /// The column of the key or the dash.
    column: usize,
    /// Inside of braces or brackets.
    flow: bool,
}

/// Why a piece was not exchanged.
enum Refusal {
    /// By no means.
    NotLiteral(NotLiteral),
    /// Not so finely: the piece around it is tried.
    Awkward,
}

type Result<T> = std::result::Result<T, Refusal>;

/// An entry of a list or mapping: from its dash or key to the end of its value.
#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    end: usize,
}

/// The entries of a list or mapping in one of the texts.
struct Collection<'a> {
    text: &'a str,
    flow: bool,
    /// Where the line after the key's line begins; none when the first entry stands on the key's line.
    head: Option<usize>,
    column: usize,
    entries: Vec<Entry>,
}

/// What stands between two entries that both sides have: indices of both.
struct Stretch {
    tip: Range<usize>,
    good: Range<usize>,
}

impl<'a> Splice<'a> {
    pub(super) fn new(tip: Side<'a>, good: Option<Side<'a>>, aliased: &'a BTreeSet<usize>) -> Self {
        Self { tip, good, aliased, edits: Vec::new(), fields: Vec::new() }
    }

    /// Puts the value of one key of a mapping back. Both nodes are the mappings that hold the key.
    pub(super) fn entry(
        mut self,
        tip: &'a Node,
        good: Option<&'a Node>,
        key: &str,
        (from, to): (&Value, &Value),
        path: &str,
    ) -> std::result::Result<(String, Vec<String>), NotLiteral> {
        let awkward = || NotLiteral::new(path, "cannot be put back by exchanging its own bytes only");
        let place = place_in(self.tip.text, tip, key).map_err(|_| awkward())?;
        let good = match (self.good, good) {
            (Some(side), Some(node)) => Some(place_in(side.text, node, key).map_err(|_| awkward())?),
            _ => None,
        };
        self.value(place, good, from, to, path).map_err(|refusal| match refusal {
            Refusal::NotLiteral(refusal) => refusal,
            Refusal::Awkward => awkward(),
        })?;
        let text = self.apply().ok_or_else(awkward)?;
        Ok((text, self.fields))
    }

    fn apply(&mut self) -> Option<String> {
        self.edits.sort_by_key(|(range, _)| (range.start, range.end));
        let mut text = String::with_capacity(self.tip.text.len());
        let mut done = 0;
        for (range, new) in &self.edits {
            text.push_str(self.tip.text.get(done..range.start)?);
            text.push_str(new);
            done = range.end;
        }
        text.push_str(self.tip.text.get(done..)?);
        Some(text)
    }

    fn value(&mut self, tip: Place<'a>, good: Option<Place<'a>>, from: &Value, to: &Value, path: &str) -> Result<()> {
        if from == to {
            return Ok(());
        }
        if matches!(tip.node.kind, Kind::Alias) {
            return Err(written_elsewhere(path));
        }
        if self.aliased.contains(&tip.node.anchor) {
            return Err(NotLiteral::new(path, "has an anchor that other values use").into());
        }
        let before = (self.edits.len(), self.fields.len());
        match self.parts(tip, good, from, to, path) {
            Err(Refusal::Awkward) => {
                self.edits.truncate(before.0);
                self.fields.truncate(before.1);
                self.whole(tip, good, to, path)
            }
            result => result,
        }
    }

    /// Exchanges what differs inside.
    fn parts(&mut self, tip: Place<'a>, good: Option<Place<'a>>, from: &Value, to: &Value, path: &str) -> Result<()> {
        // Of another style, the text that made it so is put back; where that cannot stand here, the values are.
        let alike = good.is_none_or(|good| is_flow(tip.node) == is_flow(good.node) || tip.flow && !good.flow);
        match (&tip.node.kind, good.map(|good| &good.node.kind), from, to) {
            _ if !alike => Err(Refusal::Awkward),
            (
                Kind::Mapping { entries, .. },
                Some(Kind::Mapping { entries: good_entries, .. }),
                Value::Object(from),
                Value::Object(to),
            ) => self.mapping((tip, entries), (good, good_entries), from, to, path),
            (Kind::Mapping { entries, .. }, None, Value::Object(from), Value::Object(to)) => {
                self.mapping((tip, entries), (None, &[]), from, to, path)
            }
            (
                Kind::Sequence { items, .. },
                Some(Kind::Sequence { items: good_items, .. }),
                Value::Array(from),
                Value::Array(to),
            ) => self.sequence((tip, items), (good, good_items), from, to, path),
            (Kind::Sequence { items, .. }, None, Value::Array(from), Value::Array(to)) if from.len() == to.len() => {
                self.sequence((tip, items), (None, &[]), from, to, path)
            }
            _ => Err(Refusal::Awkward),
        }
    }

    /// Exchanges the value as a whole.
    fn whole(&mut self, tip: Place<'a>, good: Option<Place<'a>>, to: &Value, path: &str) -> Result<()> {
        if has_alias(tip.node) {
            return Err(written_elsewhere(path));
        }
        if has_anchor_of(tip.node, self.aliased) {
            return Err(NotLiteral::new(path, "has an anchor that other values use").into());
        }
        let is_scalar = !to.is_object() && !to.is_array();
        let source = self.good.zip(good).filter(|(_, good)| !good.node.has_names());
        let tip_scalar = tip.node.text().is_some() && !tip.node.is_block_scalar() && !tip.node.is_empty();
        let (range, text) = match source {
            Some((side, good)) if tip.flow && good.flow && (side.json || !self.tip.json) && !good.node.is_empty() => {
                (inner(tip.node), cut(side.text, inner(good.node))?.to_owned())
            }
            _ if tip.flow => (inner(tip.node), to.to_string()),
            Some((side, good)) if tip_scalar && good.node.text().is_some() && !good.node.is_block_scalar() => {
                let text = shift(cut(side.text, inner(good.node))?, (good.column, tip.column), false);
                (inner(tip.node), self.with_own_line_ends(&text))
            }
            Some((side, good)) => {
                // A comment beside a value of one line has no place beside one of many, and the other way round.
                let beside = !on_its_line(tip.node) || !on_its_line(good.node);
                let text = cut(side.text, good.whole(side.text, beside))?;
                let text = shift(text, (good.column, tip.column), false);
                (tip.whole(self.tip.text, beside), self.with_own_line_ends(&text))
            }
            None if is_scalar && tip_scalar => (inner(tip.node), scalar(tip.node, to)),
            None if is_scalar => (tip.whole(self.tip.text, false), format!(" {to}")),
            None if self.good.is_some() => return Err(written_elsewhere(path)),
            None => return Err(NotLiteral::new(path, NOT_SINGLE).into()),
        };
        if tip.flow && tip.node.is_empty() {
            return Err(Refusal::Awkward);
        }
        self.edits.push((range, text));
        self.fields.push(path.to_owned());
        Ok(())
    }

    fn mapping(
        &mut self,
        (tip, entries): (Place<'a>, &'a [(Node, Node)]),
        (good, good_entries): (Option<Place<'a>>, &'a [(Node, Node)]),
        from: &serde_json::Map<String, Value>,
        to: &serde_json::Map<String, Value>,
        path: &str,
    ) -> Result<()> {
        let keys = keys(entries)?;
        let good_keys = if good.is_some() { self::keys(good_entries)? } else { keys.clone() };
        let at = |keys: &[&str], key: &str| keys.iter().position(|known| *known == key);
        for key in from.keys().chain(to.keys()) {
            let differs = from.get(key) != to.get(key);
            let missing = from.contains_key(key) && at(&keys, key).is_none()
                || to.contains_key(key) && at(&good_keys, key).is_none();
            if differs && missing {
                return Err(match good {
                    Some(_) => written_elsewhere(&member(path, key)),
                    None => NotLiteral::new(&member(path, key), NOT_SINGLE).into(),
                });
            }
        }
        for (index, key) in keys.iter().enumerate() {
            let (Some(from), Some(to)) = (from.get(*key), to.get(*key)) else { continue };
            if from == to {
                continue;
            }
            let good_place = match (self.good, good, at(&good_keys, key)) {
                (Some(side), Some(good), Some(index)) => Some(entry_place(side.text, good, good_entries, index)?),
                _ => None,
            };
            let tip_place = entry_place(self.tip.text, tip, entries, index)?;
            self.value(tip_place, good_place, from, to, &member(path, key))?;
        }
        let (Some(side), Some(good)) = (self.good, good) else { return Ok(()) };
        let leaves = |key: &str| from.contains_key(key) && !to.contains_key(key);
        let comes = |key: &str| to.contains_key(key) && !from.contains_key(key);
        if !keys.iter().any(|key| leaves(key)) && !good_keys.iter().any(|key| comes(key)) {
            return Ok(());
        }
        let entries_of = |entries: &[(Node, Node)]| -> Vec<Entry> {
            let entry = |(key, value): &(Node, Node)| Entry { start: key.bytes.start, end: value.bytes.end };
            entries.iter().map(entry).collect()
        };
        let tip_side = Collection::new(self.tip.text, tip, entries_of(entries));
        let good_side = Collection::new(side.text, good, entries_of(good_entries));
        for stretch in stretches(&keys, &good_keys)? {
            let gone: Vec<usize> = stretch.tip.clone().filter(|index| leaves(keys[*index])).collect();
            let back: Vec<usize> = stretch.good.clone().filter(|index| comes(good_keys[*index])).collect();
            self.fields.extend(gone.iter().map(|index| member(path, keys[*index])));
            self.fields.extend(back.iter().map(|index| member(path, good_keys[*index])));
            self.exchange(&tip_side, &good_side, &stretch, &gone, &back)?;
        }
        Ok(())
    }

    fn sequence(
        &mut self,
        (tip, items): (Place<'a>, &'a [Node]),
        (good, good_items): (Option<Place<'a>>, &'a [Node]),
        from: &[Value],
        to: &[Value],
        path: &str,
    ) -> Result<()> {
        if items.len() != from.len() || good.is_some() && good_items.len() != to.len() {
            return Err(Refusal::Awkward);
        }
        let tip_side = Collection::new(self.tip.text, tip, item_entries(self.tip.text, tip, items)?);
        let names = names(from).zip(names(to));
        let label = |index: usize| match &names {
            Some((from, _)) => format!("{path}[{}]", from[index]),
            None => format!("{path}[{index}]"),
        };
        let (Some(side), Some(good)) = (self.good, good) else {
            for (index, item) in items.iter().enumerate() {
                let place = item_place(&tip_side, tip, item, index);
                self.value(place, None, &from[index], &to[index], &label(index))?;
            }
            return Ok(());
        };
        let good_side = Collection::new(side.text, good, item_entries(side.text, good, good_items)?);
        let pair = |splice: &mut Self, index: usize, good_index: usize| {
            let place = item_place(&tip_side, tip, &items[index], index);
            let good_place = item_place(&good_side, good, &good_items[good_index], good_index);
            splice.value(place, Some(good_place), &from[index], &to[good_index], &label(index))
        };
        let canonical = |values: &[Value]| values.iter().map(canonical_json).collect::<Vec<_>>();
        let (tokens, good_tokens) = names.clone().unwrap_or_else(|| (canonical(from), canonical(to)));
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let good_tokens: Vec<&str> = good_tokens.iter().map(String::as_str).collect();
        let stretches = stretches(&tokens, &good_tokens)?;
        let (mut next, mut good_next) = (0, 0);
        for stretch in &stretches {
            // The equal items before the stretch; of the same name, they may differ.
            while next < stretch.tip.start {
                pair(self, next, good_next)?;
                (next, good_next) = (next + 1, good_next + 1);
            }
            (next, good_next) = (stretch.tip.end, stretch.good.end);
            let (gone, back): (Vec<usize>, Vec<usize>) =
                (stretch.tip.clone().collect(), stretch.good.clone().collect());
            if names.is_some() {
                // What only moved would be in two places at once.
                if gone.iter().any(|index| good_tokens.contains(&tokens[*index])) {
                    return Err(Refusal::Awkward);
                }
            } else if gone.len() == back.len() {
                for (index, good_index) in gone.iter().zip(&back) {
                    pair(self, *index, *good_index)?;
                }
                continue;
            }
            self.fields.extend(gone.iter().map(|index| label(*index)));
            self.fields.extend(back.iter().map(|index| match &names {
                Some((_, to)) => format!("{path}[{}]", to[*index]),
                None => format!("{path}[{index}]"),
            }));
            self.exchange(&tip_side, &good_side, stretch, &gone, &back)?;
        }
        Ok(())
    }

    /// Takes entries out of the tip's collection and puts those of the good one in their place.
    fn exchange(
        &mut self,
        tip: &Collection<'a>,
        good: &Collection<'a>,
        stretch: &Stretch,
        gone: &[usize],
        back: &[usize],
    ) -> Result<()> {
        if gone.is_empty() && back.is_empty() {
            return Ok(());
        }
        if tip.flow != good.flow {
            return Err(Refusal::Awkward);
        }
        let untouched = |all: &Range<usize>, some: &[usize]| all.len() != some.len();
        if untouched(&stretch.tip, gone) || untouched(&stretch.good, back) {
            return self.exchange_one_by_one(tip, good, stretch, gone, back);
        }
        if tip.flow { self.exchange_flow(tip, good, stretch) } else { self.exchange_lines(tip, good, stretch) }
    }

    /// Among entries that stay where they are.
    fn exchange_one_by_one(
        &mut self,
        tip: &Collection<'a>,
        good: &Collection<'a>,
        stretch: &Stretch,
        gone: &[usize],
        back: &[usize],
    ) -> Result<()> {
        for &index in gone {
            let around = |index| Stretch { tip: index..index + 1, good: stretch.good.start..stretch.good.start };
            match tip.flow {
                true => self.exchange_flow(tip, good, &around(index))?,
                false => {
                    let lines = tip.lines(index)?;
                    self.remove(tip.with_comments(lines.start, 0, good.text)..lines.end)?;
                }
            }
        }
        for &index in back {
            let place = Stretch { tip: stretch.tip.start..stretch.tip.start, good: index..index + 1 };
            match tip.flow {
                true => return Err(Refusal::Awkward),
                false => {
                    let lines = good.lines(index)?;
                    let start = good.with_comments(lines.start, 0, tip.text);
                    self.insert(tip.gap_start(&place.tip)?, good, start..lines.end, tip)?;
                }
            }
        }
        Ok(())
    }

    fn exchange_flow(&mut self, tip: &Collection<'a>, good: &Collection<'a>, stretch: &Stretch) -> Result<()> {
        if self.tip.json && self.good.is_none_or(|good| !good.json) {
            return Err(Refusal::Awkward);
        }
        let all = |entries: &[Entry], range: &Range<usize>| -> Option<Range<usize>> {
            if range.is_empty() {
                return None;
            }
            Some(entries.get(range.start)?.start..entries.get(range.end.checked_sub(1)?)?.end)
        };
        let (before, after) = (stretch.tip.start.checked_sub(1), stretch.tip.end);
        let before = before.and_then(|index| tip.entries.get(index));
        let after = tip.entries.get(after);
        let good_before = stretch.good.start.checked_sub(1).and_then(|index| good.entries.get(index));
        let good_after = good.entries.get(stretch.good.end);
        let back = all(&good.entries, &stretch.good);
        let edit = match (all(&tip.entries, &stretch.tip), back) {
            (Some(gone), Some(back)) => Some((gone, back)),
            (Some(gone), None) => {
                let separator = good_before.zip(good_after).and_then(|(a, b)| good.text.get(a.end..b.start));
                match (before, after) {
                    (Some(before), Some(after))
                        if separator.is_some() && separator == tip.text.get(gone.end..after.start) =>
                    {
                        Some((before.end..gone.end, 0..0))
                    }
                    (_, Some(after)) => Some((gone.start..after.start, 0..0)),
                    (Some(before), None) => Some((before.end..gone.end, 0..0)),
                    (None, None) => None,
                }
            }
            (None, Some(back)) => {
                let front = before.zip(good_before).map(|(at, good)| (at.end..at.end, good.end..back.end));
                let rear = after.zip(good_after).map(|(at, good)| (at.start..at.start, back.start..good.start));
                let separator = before.zip(after).and_then(|(a, b)| tip.text.get(a.end..b.start));
                let first = good_before.and_then(|before| good.text.get(before.end..back.start));
                if separator.is_some() && separator == first { rear.or(front) } else { front.or(rear) }
            }
            (None, None) => None,
        };
        let (range, source) = edit.ok_or(Refusal::Awkward)?;
        self.edits.push((range, self.with_own_line_ends(cut(good.text, source)?)));
        Ok(())
    }

    /// The lines of the entries. Comments and empty lines around them stay, except where taking them along is what
    /// makes the text between the neighbours the same as in the good one.
    fn exchange_lines(&mut self, tip: &Collection<'a>, good: &Collection<'a>, stretch: &Stretch) -> Result<()> {
        let gone = tip.lines_of(&stretch.tip)?;
        let back = good.lines_of(&stretch.good)?;
        let all = tip.gap_start(&stretch.tip)?..tip.gap_end(&stretch.tip)?;
        let good_all = good.gap_start(&stretch.good)?..good.gap_end(&stretch.good)?;
        let at_end = stretch.tip.end == tip.entries.len();
        match (gone, back) {
            (Some(gone), Some(back)) => self.replace_lines(gone, good, back, tip)?,
            (Some(gone), None) => {
                let first = cut(tip.text, all.start..gone.start)?;
                let last = cut(tip.text, gone.end..all.end)?;
                let wanted = cut(good.text, good_all)?;
                self.remove(match shared(wanted, first, last) {
                    _ if at_end => all.start + before_the_end(wanted, first, last)..gone.end,
                    Some((before, after)) => all.start + before..all.end - after,
                    None => tip.with_comments(gone.start, all.start, good.text)..gone.end,
                })?;
            }
            (None, Some(back)) => {
                let first = cut(good.text, good_all.start..back.start)?;
                let last = cut(good.text, back.end..good_all.end)?;
                let present = cut(tip.text, all.clone())?;
                let (at, lines) = match shared(present, first, last) {
                    _ if at_end => {
                        let before = before_the_end(present, first, last);
                        let place = all.start + lines_length(present, cut(first, 0..before)?);
                        (place, good_all.start + before..back.end)
                    }
                    // What both sides have is counted in the good text, whose line ends may be others.
                    Some((before, after)) => {
                        let place = all.start + lines_length(present, cut(first, 0..before)?);
                        (place, good_all.start + before..good_all.end - after)
                    }
                    None => (all.start, good.with_comments(back.start, good_all.start, tip.text)..back.end),
                };
                self.insert(at, good, lines, tip)?;
            }
            (None, None) => {}
        }
        Ok(())
    }

    fn replace_lines(
        &mut self,
        range: Range<usize>,
        good: &Collection<'a>,
        lines: Range<usize>,
        tip: &Collection<'a>,
    ) -> Result<()> {
        let mut text = self.lines(good, lines, tip)?;
        if !cut(self.tip.text, range.clone())?.ends_with('\n') {
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
        }
        self.edits.push((range, text));
        Ok(())
    }

    fn insert(&mut self, at: usize, good: &Collection<'a>, lines: Range<usize>, tip: &Collection<'a>) -> Result<()> {
        let mut text = self.lines(good, lines, tip)?;
        let before = cut(self.tip.text, 0..at)?;
        if !before.is_empty() && !before.ends_with('\n') {
            // The last line of the file has no end; the new one has none either.
            text = format!("{}{}", self.line_end(), text.trim_end_matches(['\r', '\n']));
        }
        self.edits.push((at..at, text));
        Ok(())
    }

    /// Good lines as they stand in the tip: its indentation, its line ends, each with an end.
    fn lines(&self, good: &Collection<'a>, lines: Range<usize>, tip: &Collection<'a>) -> Result<String> {
        let text = shift(cut(good.text, lines)?, (good.column, tip.column), true);
        let mut text = self.with_own_line_ends(&text);
        if !text.ends_with('\n') {
            text.push_str(self.line_end());
        }
        Ok(text)
    }

    fn remove(&mut self, mut range: Range<usize>) -> Result<()> {
        if range.end == self.tip.text.len() && !cut(self.tip.text, range.clone())?.ends_with('\n') {
            // The last line of the file has no end, and the one before it is to have none.
            let before = cut(self.tip.text, 0..range.start)?;
            range.start =
                before.strip_suffix('\n').map_or(before, |rest| rest.strip_suffix('\r').unwrap_or(rest)).len();
        }
        self.edits.push((range, String::new()));
        Ok(())
    }

    fn line_end(&self) -> &'static str {
        uniform(self.tip.text).unwrap_or("\n")
    }

    /// Where each file has line ends of one kind, the tip's kind. Mixed ones are copied as they are.
    fn with_own_line_ends(&self, text: &str) -> String {
        let ends = self.good.and_then(|good| uniform(good.text)).zip(uniform(self.tip.text));
        match ends {
            Some(("\r\n", "\n")) => text.replace("\r\n", "\n"),
            Some(("\n", "\r\n")) => text.replace('\n', "\r\n"),
            _ => text.to_owned(),
        }
    }
}

impl Place<'_> {
    /// All that stands behind the colon or dash, with the comment beside it or without.
    fn whole(&self, text: &str, beside: bool) -> Range<usize> {
        let end = self.node.bytes.end.max(self.start);
        let rest = text.get(end..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let comment = beside && line.trim_start().starts_with('#');
        self.start..if comment { end + line.len() } else { end }
    }
}

impl<'a> Collection<'a> {
    fn new(text: &'a str, place: Place<'a>, entries: Vec<Entry>) -> Self {
        let flow = place.flow || is_flow(place.node);
        let first = entries.first().map_or(place.start, |first| first.start.max(place.start));
        let head = text[place.start..first].find('\n').map(|at| place.start + at + 1);
        Self { text, flow, head, column: column(text, first), entries }
    }

    /// The whole lines of an entry that shares them with nothing else.
    fn lines(&self, index: usize) -> Result<Range<usize>> {
        let entry = self.entries.get(index).ok_or(Refusal::Awkward)?;
        Ok(self.line_of(entry)?..self.line_after(entry)?)
    }

    fn lines_of(&self, range: &Range<usize>) -> Result<Option<Range<usize>>> {
        match range.end.checked_sub(1) {
            Some(last) if !range.is_empty() => Ok(Some(self.lines(range.start)?.start..self.lines(last)?.end)),
            _ => Ok(None),
        }
    }

    /// Where the line of an entry begins that stands first in it.
    fn line_of(&self, entry: &Entry) -> Result<usize> {
        let start = line_start(&self.text[..entry.start]);
        let indentation = self.text[start..entry.start].trim_start_matches('\u{feff}');
        if indentation.trim_matches(' ').is_empty() { Ok(start) } else { Err(Refusal::Awkward) }
    }

    /// Where the line after an entry begins, if nothing but a comment follows it.
    fn line_after(&self, entry: &Entry) -> Result<usize> {
        let rest = &self.text[entry.end..];
        let end = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let rest = rest[..end].trim_start();
        // The colon of a key without a value.
        let rest = rest.strip_prefix(':').unwrap_or(rest).trim();
        if rest.is_empty() || rest.starts_with('#') { Ok(entry.end + end) } else { Err(Refusal::Awkward) }
    }

    /// The end of the entry before a stretch.
    fn gap_start(&self, stretch: &Range<usize>) -> Result<usize> {
        match stretch.start.checked_sub(1).and_then(|before| self.entries.get(before)) {
            Some(before) => self.line_after(before),
            None => self.head.ok_or(Refusal::Awkward),
        }
    }

    /// The beginning of the entry after a stretch; at the end of the collection, of whatever follows the comments.
    fn gap_end(&self, stretch: &Range<usize>) -> Result<usize> {
        if let Some(after) = self.entries.get(stretch.end) {
            return self.line_of(after);
        }
        let mut end = match self.lines_of(stretch)? {
            Some(lines) => lines.end,
            None => self.gap_start(stretch)?,
        };
        for line in self.text[end..].split_inclusive('\n') {
            if !line.trim().is_empty() && !line.trim_start().starts_with('#') {
                break;
            }
            end += line.len();
        }
        Ok(end)
    }

    /// A comment just above an entry comes and goes with it, unless it stands in the other text as well.
    fn with_comments(&self, start: usize, least: usize, other: &str) -> usize {
        let mut from = start;
        while from > least {
            let line = line_start(&self.text[..from - 1]);
            let comment = self.text[line..from].trim();
            if line < least || !comment.starts_with('#') || other.lines().any(|known| known.trim() == comment) {
                break;
            }
            from = line;
        }
        from
    }
}

impl From<NotLiteral> for Refusal {
    fn from(refusal: NotLiteral) -> Self {
        Self::NotLiteral(refusal)
    }
}

fn written_elsewhere(path: &str) -> Refusal {
    NotLiteral::new(path, "is written elsewhere, by an alias or a merge key").into()
}

/// `path.key`, or `path["some.key"]`.
pub(super) fn member(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if plain { format!("{path}.{key}") } else { format!("{path}[{key:?}]") }
}

/// The names of a list's items, if each has one of its own.
pub(super) fn names(values: &[Value]) -> Option<Vec<String>> {
    let names: Option<Vec<String>> =
        values.iter().map(|value| value.get("name")?.as_str().map(str::to_owned)).collect();
    names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len())
}

fn is_flow(node: &Node) -> bool {
    matches!(node.kind, Kind::Mapping { flow: true, .. } | Kind::Sequence { flow: true, .. })
}

/// Its end is on the line of its key or dash, so a comment beside it is about all of it.
fn on_its_line(node: &Node) -> bool {
    match node.kind {
        Kind::Scalar { .. } => !node.is_block_scalar(),
        Kind::Alias => true,
        Kind::Mapping { flow, .. } | Kind::Sequence { flow, .. } => flow,
    }
}

fn has_alias(node: &Node) -> bool {
    match &node.kind {
        Kind::Alias => true,
        Kind::Scalar { .. } => false,
        Kind::Mapping { entries, .. } => entries.iter().any(|(key, value)| has_alias(key) || has_alias(value)),
        Kind::Sequence { items, .. } => items.iter().any(has_alias),
    }
}

fn has_anchor_of(node: &Node, anchors: &BTreeSet<usize>) -> bool {
    anchors.contains(&node.anchor)
        || match &node.kind {
            Kind::Alias | Kind::Scalar { .. } => false,
            Kind::Mapping { entries, .. } => {
                entries.iter().any(|(key, value)| has_anchor_of(key, anchors) || has_anchor_of(value, anchors))
            }
            Kind::Sequence { items, .. } => items.iter().any(|item| has_anchor_of(item, anchors)),
        }
}

/// The bytes of a value, with its tag.
fn inner(node: &Node) -> Range<usize> {
    node.tag.unwrap_or(node.bytes.start).min(node.bytes.start)..node.bytes.end
}

fn column(text: &str, at: usize) -> usize {
    text[line_start(&text[..at])..at].trim_start_matches('\u{feff}').chars().count()
}

/// The keys of a mapping: plain ones only, each once.
fn keys(entries: &[(Node, Node)]) -> Result<Vec<&str>> {
    let keys: Option<Vec<&str>> =
        entries.iter().map(|(key, _)| key.text().filter(|_| !key.is_block_scalar())).collect();
    let keys = keys.ok_or(Refusal::Awkward)?;
    let different = keys.iter().collect::<BTreeSet<_>>().len() == keys.len();
    if different { Ok(keys) } else { Err(Refusal::Awkward) }
}

/// Where the value of a key stands in a mapping that is the root, or holds the part that is put back.
fn place_in<'a>(text: &str, mapping: &'a Node, key: &str) -> Result<Place<'a>> {
    let Kind::Mapping { entries, .. } = &mapping.kind else { return Err(Refusal::Awkward) };
    let index = keys(entries)?.iter().position(|known| *known == key).ok_or(Refusal::Awkward)?;
    let place = Place { node: mapping, start: mapping.bytes.start, column: 0, flow: false };
    entry_place(text, place, entries, index)
}

fn entry_place<'a>(text: &str, mapping: Place<'a>, entries: &'a [(Node, Node)], index: usize) -> Result<Place<'a>> {
    let (key, node) = entries.get(index).ok_or(Refusal::Awkward)?;
    let rest = &text[key.bytes.end..];
    let colon = rest.len() - rest.trim_start().len();
    if !rest[colon..].starts_with(':') || key.tag.is_some() || key.anchor != 0 {
        return Err(Refusal::Awkward);
    }
    let flow = mapping.flow || is_flow(mapping.node);
    Ok(Place { node, start: key.bytes.end + colon + 1, column: column(text, key.bytes.start), flow })
}

fn item_place<'a>(collection: &Collection<'_>, list: Place<'a>, node: &'a Node, index: usize) -> Place<'a> {
    let start = collection.entries.get(index).map_or(node.bytes.start, |entry| entry.start);
    let flow = list.flow || is_flow(list.node);
    Place { node, start: if flow { start } else { start + 1 }, column: column(collection.text, start), flow }
}

/// The items of a list, from their dashes.
fn item_entries(text: &str, list: Place<'_>, items: &[Node]) -> Result<Vec<Entry>> {
    let flow = list.flow || is_flow(list.node);
    let mut from = list.start;
    let mut entries = Vec::with_capacity(items.len());
    for item in items {
        if item.is_empty() || flow && item.anchor != 0 {
            return Err(Refusal::Awkward);
        }
        let start = if flow { inner(item).start } else { dash(text, from).ok_or(Refusal::Awkward)? };
        if start > item.bytes.start {
            return Err(Refusal::Awkward);
        }
        from = item.bytes.end;
        entries.push(Entry { start, end: item.bytes.end });
    }
    Ok(entries)
}

/// The next dash, past white space and comments. The name of an anchor or a tag may stand before the first one.
fn dash(text: &str, mut from: usize) -> Option<usize> {
    loop {
        let rest = &text[from..];
        from += rest.len() - rest.trim_start().len();
        let rest = &text[from..];
        match rest.chars().next()? {
            '-' => return Some(from),
            '#' => from += rest.find('\n')?,
            // The colon of a key without a value ends the item before.
            ':' => from += 1,
            '&' | '!' => from += rest.find(char::is_whitespace)?,
            _ => return None,
        }
    }
}

/// A piece of a text. Positions that do not fit it are no reason to panic: the piece around is tried.
fn cut(text: &str, range: Range<usize>) -> Result<&str> {
    text.get(range).ok_or(Refusal::Awkward)
}

/// Moves lines from one column to another. Empty ones have none.
fn shift(text: &str, (from, to): (usize, usize), first: bool) -> String {
    let (deeper, shallower) = (to.saturating_sub(from), from.saturating_sub(to));
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if line.trim().is_empty() || index == 0 && !first {
            out.push_str(line);
            continue;
        }
        out.extend(std::iter::repeat_n(' ', deeper));
        let spaces = line.len() - line.trim_start_matches(' ').len();
        out.push_str(&line[spaces.min(shallower)..]);
    }
    out
}

/// A gap that is the beginning of one text and then the end of another: the bytes of these two parts in those texts.
/// Whatever stands between them is what makes the difference.
fn shared(gap: &str, first: &str, last: &str) -> Option<(usize, usize)> {
    let lines =
        |text: &str| text.split_inclusive('\n').map(|line| line.trim_end_matches(['\r', '\n']).to_owned()).collect();
    let (gap, first_lines, last_lines): (Vec<String>, Vec<String>, Vec<String>) =
        (lines(gap), lines(first), lines(last));
    let at =
        (0..=gap.len()).rev().find(|&at| first_lines.starts_with(&gap[..at]) && last_lines.ends_with(&gap[at..]))?;
    let before = first.split_inclusive('\n').take(at).map(str::len).sum();
    let after = last.split_inclusive('\n').rev().take(gap.len() - at).map(str::len).sum();
    Some((before, after))
}

/// The same at the end of a collection, where the end of the gap belongs to what follows it: the bytes of the first
/// part only.
fn before_the_end(gap: &str, first: &str, last: &str) -> usize {
    let lines =
        |text: &str| text.split_inclusive('\n').map(|line| line.trim_end_matches(['\r', '\n']).to_owned()).collect();
    let (gap, first_lines, last): (Vec<String>, Vec<String>, Vec<String>) = (lines(gap), lines(first), lines(last));
    let own = gap.strip_suffix(last.as_slice()).filter(|own| first_lines.starts_with(own));
    let count = own.map_or_else(|| gap.iter().zip(&first_lines).take_while(|(a, b)| a == b).count(), <[String]>::len);
    first.split_inclusive('\n').take(count).map(str::len).sum()
}

/// The bytes of as many lines of a text as another one has.
fn lines_length(text: &str, like: &str) -> usize {
    text.split_inclusive('\n').take(like.split_inclusive('\n').count()).map(str::len).sum()
}

/// The line end of a text that has one kind only.
fn uniform(text: &str) -> Option<&'static str> {
    let (all, long) = (text.matches('\n').count(), text.matches("\r\n").count());
    match (all, long) {
        (0, _) => None,
        (_, 0) => Some("\n"),
        (all, long) if all == long => Some("\r\n"),
        _ => None,
    }
}

/// A value in the style of the one it replaces.
fn scalar(old: &Node, new: &Value) -> String {
    let Some(text) = new.as_str() else { return new.to_string() };
    let style = match &old.kind {
        Kind::Scalar { style, .. } => *style,
        _ => ScalarStyle::DoubleQuoted,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/@:-".contains(c);
    let word = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !text.ends_with(':')
        && !word.contains(&text.to_ascii_lowercase().as_str());
    match style {
        ScalarStyle::Plain if is_plain => text.to_owned(),
        ScalarStyle::SingleQuoted if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', "''")),
        _ => new.to_string(),
    }
}

/// The stretches between what both lists have in the same order: before the first such pair, between each two
/// neighbours, and after the last.
fn stretches(tip: &[&str], good: &[&str]) -> Result<Vec<Stretch>> {
    let prefix = tip.iter().zip(good).take_while(|(a, b)| a == b).count();
    let longest = tip.len().min(good.len()) - prefix;
    let suffix = tip.iter().rev().zip(good.iter().rev()).take(longest).take_while(|(a, b)| a == b).count();
    let (middle, good_middle) = (&tip[prefix..tip.len() - suffix], &good[prefix..good.len() - suffix]);
    if middle.len().saturating_mul(good_middle.len()) > MOST_STEPS {
        return Err(Refusal::Awkward);
    }
    // The length of the longest common part of what begins at each pair of positions.
    let width = good_middle.len() + 1;
    let mut lengths = vec![0usize; (middle.len() + 1) * width];
    for a in (0..middle.len()).rev() {
        for b in (0..good_middle.len()).rev() {
            lengths[a * width + b] = if middle[a] == good_middle[b] {
                lengths[(a + 1) * width + b + 1] + 1
            } else {
                lengths[(a + 1) * width + b].max(lengths[a * width + b + 1])
            };
        }
    }
    let mut pairs: Vec<(usize, usize)> = (0..prefix).map(|index| (index, index)).collect();
    let (mut a, mut b) = (0, 0);
    while a < middle.len() && b < good_middle.len() {
        if middle[a] == good_middle[b] {
            pairs.push((prefix + a, prefix + b));
            (a, b) = (a + 1, b + 1);
        } else if lengths[(a + 1) * width + b] >= lengths[a * width + b + 1] {
            a += 1;
        } else {
            b += 1;
        }
    }
    pairs.extend((0..suffix).rev().map(|index| (tip.len() - 1 - index, good.len() - 1 - index)));
    let mut found = Vec::with_capacity(pairs.len() + 1);
    let (mut next, mut good_next) = (0, 0);
    for (index, good_index) in pairs {
        found.push(Stretch { tip: next..index, good: good_next..good_index });
        (next, good_next) = (index + 1, good_index + 1);
    }
    found.push(Stretch { tip: next..tip.len(), good: good_next..good.len() });
    Ok(found)
}
