//! A text of SQL as words: names, strings, and single characters of everything else.
//!
//! Owns quoting and comments, as `sql/sql_lex.cc` of both servers reads them.

use std::borrow::Cow;

/// One word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word<'a> {
    /// Keyword, name or number.
    Bare(&'a [u8]),
    /// In backticks, without them.
    Quoted(Cow<'a, [u8]>),
    /// In double quotes, without them: a name or a string.
    Doubly(Cow<'a, [u8]>),
    /// In single quotes.
    String,
    Symbol(u8),
}

impl Word<'_> {
    /// Whether it may be this name.
    pub(super) fn is_name(&self, name: &[u8]) -> bool {
        match self {
            Word::Bare(word) => word.eq_ignore_ascii_case(name),
            Word::Quoted(word) | Word::Doubly(word) => word.eq_ignore_ascii_case(name),
            Word::String | Word::Symbol(_) => false,
        }
    }
}

/// The words of a text, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Words<'a> {
    text: &'a [u8],
    rest: &'a [u8],
    doubtful: bool,
    conditional: bool,
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, rest: text, doubtful: false, conditional: false }
    }

    /// All of it.
    pub(super) fn text(&self) -> &'a [u8] {
        self.text
    }

    /// What follows the words so far.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether some of the words so far are code to servers of some versions only.
    pub(super) fn is_conditional(&self) -> bool {
        self.conditional
    }

    /// Whether a string among the words so far may end elsewhere.
    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Steps over this keyword, where it is next.
    pub(super) fn keyword(&mut self, keyword: &str) -> bool {
        let mut ahead = self.clone();
        let found = match ahead.next() {
            Some(Word::Bare(word)) => word.eq_ignore_ascii_case(keyword.as_bytes()),
            _ => false,
        };
        if found {
            *self = ahead;
        }
        found
    }

    /// Steps over this character, where it is next.
    pub(super) fn symbol(&mut self, symbol: u8) -> bool {
        let mut ahead = self.clone();
        let found = ahead.next() == Some(Word::Symbol(symbol));
        if found {
            *self = ahead;
        }
        found
    }

    /// A name, where one is next.
    pub(super) fn identifier(&mut self) -> Option<Cow<'a, [u8]>> {
        let mut ahead = self.clone();
        let name = match ahead.next()? {
            Word::Bare(name) => Cow::Borrowed(name),
            Word::Quoted(name) | Word::Doubly(name) => name,
            Word::String | Word::Symbol(_) => return None,
        };
        *self = ahead;
        Some(name)
    }

    /// The last word, which must be a name.
    pub(super) fn name(&mut self) -> Option<Cow<'a, [u8]>> {
        let name = self.identifier()?;
        self.end(&[]).then_some(name)
    }

    /// Whether nothing but these words and `;` is left.
    pub(super) fn end(&mut self, fillers: &[&str]) -> bool {
        for filler in fillers {
            self.keyword(filler);
        }
        while self.symbol(b';') {}
        self.next().is_none()
    }

    fn take_while(&mut self, is_part: impl Fn(u8) -> bool) -> &'a [u8] {
        let length = self.rest.iter().position(|byte| !is_part(*byte));
        let (taken, rest) = self.rest.split_at(length.unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn strip(&mut self, prefix: &[u8]) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Steps over blanks and comments.
    fn skip(&mut self) {
        loop {
            self.take_while(|byte| byte.is_ascii_whitespace() || byte == 0x0B);
            if self.strip(b"/*!") || self.strip(b"/*M!") {
                // The version from which on it is code.
                self.conditional = true;
                self.take_while(|byte| byte.is_ascii_digit());
            } else if self.strip(b"/*") {
                self.skip_past(b"*/");
            } else if self.strip(b"*/") {
                // The end of what is code.
            } else if self.strip(b"#") || self.is_line_comment() {
                self.skip_past(b"\n");
            } else {
                return;
            }
        }
    }

    /// Two dashes are a comment only before a blank or a control character.
    fn is_line_comment(&self) -> bool {
        let after = self.rest.strip_prefix(b"--");
        after.is_some_and(|rest| rest.first().is_none_or(|byte| *byte <= b' '))
    }

    fn skip_past(&mut self, end: &[u8]) {
        let found = self.rest.windows(end.len()).position(|window| window == end);
        self.rest = found.and_then(|at| self.rest.get(at + end.len()..)).unwrap_or_default();
    }

    /// Up to the closing quote, which is doubled inside. A backslash takes the next character
    /// with it, unless this is a name in backticks.
    fn quoted(&mut self, quote: u8) -> Cow<'a, [u8]> {
        let inside = self.rest;
        let mut doubled = false;
        let mut at = 0;
        let end = loop {
            match (inside.get(at), inside.get(at + 1)) {
                (None, _) => break inside.len(),
                (Some(b'\\'), next) if quote != b'`' => {
                    self.doubtful |= next == Some(&quote);
                    at += 2;
                }
                (Some(byte), Some(next)) if *byte == quote && *next == quote => {
                    doubled = true;
                    at += 2;
                }
                (Some(byte), _) if *byte == quote => break at,
                (Some(_), _) => at += 1,
            }
        };
        let name = inside.get(..end).unwrap_or(inside);
        self.rest = inside.get(end + 1..).unwrap_or_default();
        if !doubled {
            return Cow::Borrowed(name);
        }
        let mut plain = Vec::with_capacity(name.len());
        let mut skip = false;
        for byte in name {
            skip = *byte == quote && !skip;
            if !skip {
                plain.push(*byte);
            }
        }
        Cow::Owned(plain)
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        self.skip();
        let (first, rest) = self.rest.split_first()?;
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        if is_part(*first) || *first == b'$' {
            return Some(Word::Bare(self.take_while(|byte| is_part(byte) || byte == b'$')));
        }
        self.rest = rest;
        Some(match first {
            b'`' => Word::Quoted(self.quoted(b'`')),
            b'"' => Word::Doubly(self.quoted(b'"')),
            b'\'' => {
                self.quoted(b'\'');
                Word::String
            }
            symbol => Word::Symbol(*symbol),
        })
    }
}
