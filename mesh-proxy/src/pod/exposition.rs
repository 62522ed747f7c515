//! The two text formats of metrics, as far as two pages are made one: which is wanted, and how one is written as the
//! other. Pure.

use std::fmt::Write as _;

use bytes::Bytes;
use memchr::memmem;

/// The older text format, which everybody reads.
pub(super) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The one that the proxy's metrics are encoded in.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The last line of `OpenMetrics`, and of it alone.
pub(super) const END: &str = "# EOF\n";

const OPEN_METRICS_TYPE: &str = "application/openmetrics-text";

/// A line that is longer than this is not one of metrics.
const LONGEST_LINE: usize = 1 << 20;

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    OpenMetrics,
}

impl Format {
    /// What a `Content-Type` says; `None` for what cannot be put beside other lines. Without one it is text.
    pub(super) fn of(content_type: Option<&str>) -> Option<Self> {
        let Some(content_type) = content_type else { return Some(Self::Text) };
        match media_type(content_type) {
            kind if kind.eq_ignore_ascii_case("text/plain") => Some(Self::Text),
            kind if kind.eq_ignore_ascii_case(OPEN_METRICS_TYPE) => Some(Self::OpenMetrics),
            _ => None,
        }
    }

    /// What a scraper wants, by its `Accept`: `OpenMetrics` only where it is named, and not behind text.
    pub(super) fn wanted(accept: &str) -> Self {
        let weight = |wanted: &str| {
            let named = accept.split(',').filter(|item| media_type(item).eq_ignore_ascii_case(wanted));
            named.map(quality).fold(0.0, f64::max)
        };
        let open = weight(OPEN_METRICS_TYPE);
        if open > 0.0 && open >= weight("text/plain") { Self::OpenMetrics } else { Self::Text }
    }

    /// The proxy's own metrics, which are encoded as `OpenMetrics`, in this format; without an end.
    pub(super) fn own(self, encoded: &str) -> String {
        let encoded = encoded.strip_suffix(END).unwrap_or(encoded);
        match self {
            Self::OpenMetrics => encoded.to_owned(),
            Self::Text => to_text(encoded),
        }
    }

    /// What a page must end with.
    pub(super) fn end(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::OpenMetrics => END,
        }
    }

    /// What a page of it is called.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => TEXT,
            Self::OpenMetrics => OPEN_METRICS,
        }
    }
}

/// What the application may be asked for: what the scraper accepts, less what has no lines.
pub(super) fn readable(accept: &str) -> String {
    let is_text = |item: &&str| !media_type(item).eq_ignore_ascii_case("application/vnd.google.protobuf");
    let kept: Vec<&str> = accept.split(',').map(str::trim).filter(is_text).collect();
    if kept.iter().all(|item| item.is_empty()) {
        "text/plain;version=0.0.4".to_owned()
    } else {
        kept.join(",")
    }
}

fn media_type(item: &str) -> &str {
    item.split(';').next().unwrap_or_default().trim()
}

fn quality(item: &str) -> f64 {
    let given = item.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q="));
    given.and_then(|text| text.trim().parse().ok()).unwrap_or(1.0)
}

/// `OpenMetrics` names a family, text names each series: counters and infos get the suffix that theirs have.
fn to_text(encoded: &str) -> String {
    let mut out = String::with_capacity(encoded.len() + 1024);
    let mut help = None;
    for line in encoded.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                writeln!(out, "# HELP {name}{suffix} {help}").unwrap_or_default();
            }
            writeln!(out, "# TYPE {name}{suffix} {kind}").unwrap_or_default();
        } else if !line.starts_with("# UNIT ") && line != END.trim_end() {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Bytes of the application's page in, whole lines out, none of which ends the page.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

/// A line that has no end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EndlessLine;

impl Lines {
    /// The lines that `data` makes whole.
    pub(super) fn push(&mut self, data: &[u8]) -> Result<Bytes, EndlessLine> {
        let Some(at) = memchr::memrchr(b'\n', data) else {
            if self.partial.len() + data.len() > LONGEST_LINE {
                return Err(EndlessLine);
            }
            self.partial.extend_from_slice(data);
            return Ok(Bytes::new());
        };
        let (whole, rest) = data.split_at(at + 1);
        let mut lines = std::mem::take(&mut self.partial);
        lines.extend_from_slice(whole);
        self.partial.extend_from_slice(rest);
        Ok(without_end(lines))
    }

    /// The last line, if it has no end of its own.
    pub(super) fn end(&mut self) -> Bytes {
        let mut last = std::mem::take(&mut self.partial);
        if last.is_empty() {
            return Bytes::new();
        }
        last.push(b'\n');
        without_end(last)
    }
}

fn without_end(lines: Vec<u8>) -> Bytes {
    if memmem::find(&lines, END.trim_end().as_bytes()).is_none() {
        return lines.into();
    }
    let is_end = |line: &&[u8]| line.trim_ascii_end() == END.trim_end().as_bytes();
    let kept: Vec<&[u8]> =
        lines.split_inclusive(|byte| *byte == b'\n').filter(|line| !is_end(line)).collect();
    kept.concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_metrics_in_both_formats() {
        let encoded = "# HELP istio_requests Requests.\n# TYPE istio_requests counter\n\
                       istio_requests_total{a=\"# EOF\"} 5\n# HELP build Version.\n# TYPE build info\n\
                       build_info{version=\"1\"} 1\n# HELP size Size.\n# TYPE size histogram\n# UNIT size bytes\n\
                       size_sum 1.0\n# TYPE x unknown\nx 1\n# EOF\n";
        assert_eq!(
            Format::Text.own(encoded),
            "# HELP istio_requests_total Requests.\n# TYPE istio_requests_total counter\n\
             istio_requests_total{a=\"# EOF\"} 5\n# HELP build_info Version.\n# TYPE build_info gauge\n\
             build_info{version=\"1\"} 1\n# HELP size Size.\n# TYPE size histogram\nsize_sum 1.0\n\
             # TYPE x untyped\nx 1\n"
        );
        assert_eq!(Format::OpenMetrics.own(encoded) + Format::OpenMetrics.end(), encoded);
    }

    #[test]
    fn formats_are_told_from_headers() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (prometheus, Format::OpenMetrics),
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain;version=0.0.4", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.7", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
        ] {
            assert_eq!(Format::wanted(accept), expected, "{accept}");
        }
        for (content_type, expected) in [
            (None, Some(Format::Text)),
            (Some("text/plain; version=0.0.4"), Some(Format::Text)),
            (Some("application/openmetrics-text; version=1.0.0"), Some(Format::OpenMetrics)),
            (Some("text/html"), None),
            (Some("application/vnd.google.protobuf; proto=x"), None),
        ] {
            assert_eq!(Format::of(content_type), expected, "{content_type:?}");
        }
        let native = format!("application/vnd.google.protobuf;proto=x;encoding=delimited,{prometheus}");
        assert_eq!(readable(&native), prometheus);
        assert_eq!(readable(""), "text/plain;version=0.0.4");
        assert_eq!(readable("application/vnd.google.protobuf"), "text/plain;version=0.0.4");
    }

    #[test]
    fn whole_lines_and_no_end() {
        for (pieces, expected) in [
            (&["a 1\nb 2\n# EOF\n"][..], "a 1\nb 2\n"),
            (&["a 1\nb", " 2\n# E", "OF\n"], "a 1\nb 2\n"),
            (&["a 1\n# EOF"], "a 1\n"),
            (&["a 1"], "a 1\n"),
            (&["# EOF\r\n", "a 1\n"], "a 1\n"),
            (&["a{b=\"# EOF\"} 1\n"], "a{b=\"# EOF\"} 1\n"),
            (&[""], ""),
        ] {
            let mut lines = Lines::default();
            let mut all = Vec::new();
            for piece in pieces {
                all.extend_from_slice(&lines.push(piece.as_bytes()).unwrap());
            }
            all.extend_from_slice(&lines.end());
            assert_eq!(String::from_utf8(all).unwrap(), expected, "{pieces:?}");
        }
        let mut lines = Lines::default();
        let endless = vec![b'x'; LONGEST_LINE];
        assert_eq!(lines.push(&endless), Ok(Bytes::new()));
        assert_eq!(lines.push(b"x"), Err(EndlessLine));
    }
}
