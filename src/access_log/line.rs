//! One record as one line, appended in place. Pure; never allocates while the buffer has
//! [`LINE_BYTES_MAX`] bytes to spare.
//!
//! A line is valid UTF-8 and holds no control character but the newline at its end, whatever a
//! client sent, so nobody can forge a line or steer a terminal. In JSON, bytes that are no UTF-8
//! become U+FFFD, and control and invisible characters `\u` escapes; in the two text formats, all
//! but printable ASCII, the quote and the backslash become `\xHH`, as nginx writes them. A field
//! that takes more than its share of a line is cut and ends in `...`.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Format, Record};

/// Bytes that a line takes at most, newline included: the sum of the limits below, and room for
/// the keys and the numbers.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of each field at most, as written.
mod share {
    pub const METHOD: usize = 64;
    pub const TARGET: usize = 8 * 1024;
    pub const HOST: usize = 512;
    pub const USER_AGENT: usize = 1024;
    pub const REFERER: usize = 2 * 1024;
    pub const REQUEST_ID: usize = 256;
    pub const FORWARDED_FOR: usize = 1024;
    /// Of each name from the configuration.
    pub const NAME: usize = 256;
    /// Keys, numbers, addresses, quotes, and the `...` of each field.
    pub const REST: usize = 1024;
}

const _: () = assert!(
    share::METHOD
        + share::TARGET
        + share::HOST
        + share::USER_AGENT
        + share::REFERER
        + share::REQUEST_ID
        + share::FORWARDED_FOR
        + 3 * share::NAME
        + share::REST
        <= LINE_BYTES_MAX
);

/// Appends `record` and a newline.
pub fn write(format: Format, record: &Record<'_>, stamp: &mut Stamp, out: &mut Vec<u8>) {
    let millis = stamp.move_to(record.start);
    match format {
        Format::Json => json(record, stamp, millis, out),
        Format::Combined => combined(record, stamp, out),
        Format::Envoy => envoy(record, stamp, millis, out),
    }
    out.push(b'\n');
}

fn json(record: &Record<'_>, stamp: &Stamp, millis: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"@timestamp\":\"");
    stamp.write_iso(millis, out);
    out.extend_from_slice(b"\",\"client.ip\":\"");
    write_ip(record.client, out);
    out.push(b'"');
    if !record.method.is_empty() {
        json_field(b"http.request.method", record.method, share::METHOD, out);
        json_field(b"url.original", record.target, share::TARGET, out);
        let version = record.protocol.strip_prefix("HTTP/").unwrap_or(record.protocol);
        json_field(b"http.version", version.as_bytes(), share::NAME, out);
    }
    json_number(b"http.response.status_code", record.status.into(), out);
    json_number(b"http.request.body.bytes", record.body_bytes_received, out);
    json_number(b"http.response.body.bytes", record.body_bytes_sent, out);
    json_number(b"event.duration", record.duration_ns, out);
    let optional: [(&[u8], _, _); 5] = [
        (b"url.domain", record.host, share::HOST),
        (b"user_agent.original", record.user_agent, share::USER_AGENT),
        (b"http.request.referrer", record.referer, share::REFERER),
        (b"http.request.id", record.request_id, share::REQUEST_ID),
        (b"http.request.forwarded_for", record.forwarded_for, share::FORWARDED_FOR),
    ];
    for (key, value, share) in optional {
        if let Some(value) = value {
            json_field(key, value, share, out);
        }
    }
    if let Some(upstream) = record.upstream {
        json_key(b"outrigger.upstream.address", out);
        out.push(b'"');
        write_socket_address(upstream, out);
        out.push(b'"');
    }
    if let Some(duration_ns) = record.upstream_duration_ns {
        json_number(b"outrigger.upstream.duration", duration_ns, out);
    }
    if record.attempts > 1 {
        json_number(b"outrigger.upstream.attempts", record.attempts.into(), out);
    }
    json_field(b"outrigger.listener", record.listener.as_bytes(), share::NAME, out);
    if let Some(route) = record.route {
        json_field(b"outrigger.route", route.as_bytes(), share::NAME, out);
    }
    if let Some(cluster) = record.cluster {
        json_field(b"outrigger.cluster", cluster.as_bytes(), share::NAME, out);
    }
    if let Some(kind) = record.fallback {
        json_field(b"outrigger.fallback", kind.name().as_bytes(), share::NAME, out);
    }
    if let Some(reason) = record.reason {
        json_field(b"outrigger.reason", reason.name().as_bytes(), share::NAME, out);
    }
    out.push(b'}');
}

/// `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent
/// "$http_referer" "$http_user_agent"`; the time is UTC.
fn combined(record: &Record<'_>, stamp: &Stamp, out: &mut Vec<u8>) {
    write_ip(record.client, out);
    out.extend_from_slice(b" - - [");
    stamp.write_common(out);
    out.extend_from_slice(b"] \"");
    if record.method.is_empty() {
        out.push(b'-');
    } else {
        write_request_line(record, out);
    }
    out.extend_from_slice(b"\" ");
    write_number(record.status.into(), out);
    out.push(b' ');
    write_number(record.body_bytes_sent, out);
    out.push(b' ');
    write_quoted(record.referer, share::REFERER, out);
    out.push(b' ');
    write_quoted(record.user_agent, share::USER_AGENT, out);
}

/// `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" ...`: the
/// default format of Envoy's.
fn envoy(record: &Record<'_>, stamp: &Stamp, millis: u32, out: &mut Vec<u8>) {
    out.push(b'[');
    stamp.write_iso(millis, out);
    out.extend_from_slice(b"] \"");
    if record.method.is_empty() {
        out.extend_from_slice(b"- - -");
    } else {
        write_request_line(record, out);
    }
    out.extend_from_slice(b"\" ");
    write_number(record.status.into(), out);
    out.push(b' ');
    out.extend_from_slice(record.reason.map_or("-", |reason| reason.flag()).as_bytes());
    let millis = |ns: u64| ns / 1_000_000;
    for number in [record.body_bytes_received, record.body_bytes_sent, millis(record.duration_ns)] {
        out.push(b' ');
        write_number(number, out);
    }
    out.push(b' ');
    match record.upstream_duration_ns {
        Some(ns) => write_number(millis(ns), out),
        None => out.push(b'-'),
    }
    let quoted = [
        (record.forwarded_for, share::FORWARDED_FOR),
        (record.user_agent, share::USER_AGENT),
        (record.request_id, share::REQUEST_ID),
        (record.host, share::HOST),
    ];
    for (value, share) in quoted {
        out.push(b' ');
        write_quoted(value, share, out);
    }
    out.extend_from_slice(b" \"");
    match record.upstream {
        Some(address) => write_socket_address(address, out),
        None => out.push(b'-'),
    }
    out.push(b'"');
}

fn write_request_line(record: &Record<'_>, out: &mut Vec<u8>) {
    write_escaped(record.method, share::METHOD, out);
    out.push(b' ');
    write_escaped(record.target, share::TARGET, out);
    out.push(b' ');
    out.extend_from_slice(record.protocol.as_bytes());
}

/// A missing or empty value is `-`, which no escape can be mistaken for.
fn write_quoted(value: Option<&[u8]>, share: usize, out: &mut Vec<u8>) {
    out.push(b'"');
    match value {
        None | Some([]) => out.push(b'-'),
        Some(value) => write_escaped(value, share, out),
    }
    out.push(b'"');
}

/// Printable ASCII that means nothing in any of the formats.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Text formats: `\xHH` for all that is not plain.
fn write_escaped(value: &[u8], share: usize, out: &mut Vec<u8>) {
    if value.len() <= share && value.iter().all(|b| is_plain(*b)) {
        out.extend_from_slice(value);
        return;
    }
    let end = out.len() + share;
    for byte in value {
        let escape = [b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
        let written = if is_plain(*byte) { std::slice::from_ref(byte) } else { &escape[..] };
        if out.len() + written.len() > end {
            out.extend_from_slice(b"...");
            return;
        }
        out.extend_from_slice(written);
    }
}

fn json_key(key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key);
    out.extend_from_slice(b"\":");
}

fn json_number(key: &[u8], value: u64, out: &mut Vec<u8>) {
    json_key(key, out);
    write_number(value, out);
}

fn json_field(key: &[u8], value: &[u8], share: usize, out: &mut Vec<u8>) {
    json_key(key, out);
    out.push(b'"');
    write_json_escaped(value, share, out);
    out.push(b'"');
}

fn write_json_escaped(value: &[u8], share: usize, out: &mut Vec<u8>) {
    if value.len() <= share && value.iter().all(|b| is_plain(*b)) {
        out.extend_from_slice(value);
        return;
    }
    let end = out.len() + share;
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            if !push_json_char(c, end, out) {
                return;
            }
        }
        if !chunk.invalid().is_empty() && !push_json_char(char::REPLACEMENT_CHARACTER, end, out) {
            return;
        }
    }
}

/// `false` where the field's share is used up; then the mark of it was written.
fn push_json_char(c: char, end: usize, out: &mut Vec<u8>) -> bool {
    let mut space = [0; 6];
    let written: &[u8] = match c {
        '"' => b"\\\"",
        '\\' => b"\\\\",
        c if is_invisible(c) => {
            // All of them are in the basic plane: four digits do.
            let code = c as u32;
            space = *b"\\u0000";
            for (place, digit) in space[2..].iter_mut().enumerate() {
                *digit = HEX[(code >> (12 - 4 * place)) as usize & 15].to_ascii_lowercase();
            }
            &space
        }
        c => c.encode_utf8(&mut space).as_bytes(),
    };
    if out.len() + written.len() > end {
        out.extend_from_slice(b"...");
        return false;
    }
    out.extend_from_slice(written);
    true
}

/// Control characters, and those that reorder, break or hide text on a screen.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061C}'
                | '\u{200B}'..='\u{200F}'
                | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}'
                | '\u{FEFF}'
        )
}

fn write_number(n: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

fn write_ip(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            write_number(a.into(), out);
            for part in [b, c, d] {
                out.push(b'.');
                write_number(part.into(), out);
            }
        }
        // Writing to a Vec cannot fail.
        IpAddr::V6(v6) => _ = write!(out, "{v6}"),
    }
}

fn write_socket_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address {
        SocketAddr::V4(v4) => {
            write_ip((*v4.ip()).into(), out);
            out.push(b':');
            write_number(v4.port().into(), out);
        }
        SocketAddr::V6(v6) => _ = write!(out, "{v6}"),
    }
}

/// The date and the time of one second, as text. Kept from line to line, since most lines begin
/// in the second of the one before.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Since 1970.
    second: u64,
    /// `2026-11-20T12:34:56`
    iso: [u8; 19],
    /// `20/Nov/2026:12:34:56`
    common: [u8; 20],
}

impl Default for Stamp {
    fn default() -> Self {
        let mut stamp = Stamp { second: u64::MAX, iso: [0; 19], common: [0; 20] };
        stamp.move_to(UNIX_EPOCH);
        stamp
    }
}

/// The last second that has four digits for its year.
const SECOND_MAX: u64 = 253_402_300_799;

impl Stamp {
    /// Moves to the second of `time` and returns the milliseconds within it. Times before 1970
    /// and after 9999 are told as the nearest in between.
    fn move_to(&mut self, time: SystemTime) -> u32 {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since.as_secs().min(SECOND_MAX);
        if second != self.second {
            self.second = second;
            self.spell();
        }
        since.subsec_millis()
    }

    fn spell(&mut self) {
        const MONTHS: [&[u8; 3]; 12] = [
            b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
            b"Dec",
        ];
        let (year, month, day) = date_of(self.second / 86_400);
        let of_day = self.second % 86_400;
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);

        self.iso = *b"0000-00-00T00:00:00";
        put_two(&mut self.iso, 0, year / 100);
        put_two(&mut self.iso, 2, year % 100);
        put_two(&mut self.iso, 5, month);
        put_two(&mut self.iso, 8, day);
        put_two(&mut self.iso, 11, hour);
        put_two(&mut self.iso, 14, minute);
        put_two(&mut self.iso, 17, second);

        self.common = *b"00/Mon/0000:00:00:00";
        put_two(&mut self.common, 0, day);
        self.common[3..6].copy_from_slice(MONTHS[month as usize - 1]);
        self.common[7..11].copy_from_slice(&self.iso[..4]);
        self.common[12..].copy_from_slice(&self.iso[11..]);
    }

    fn write_iso(&self, millis: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.iso);
        let mut fraction = *b".000Z";
        put_two(&mut fraction, 2, u64::from(millis) % 100);
        fraction[1] += (millis / 100) as u8;
        out.extend_from_slice(&fraction);
    }

    fn write_common(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.common);
        out.extend_from_slice(b" +0000");
    }
}

/// Two digits at a place.
fn put_two(text: &mut [u8], at: usize, n: u64) {
    text[at] = b'0' + (n / 10) as u8;
    text[at + 1] = b'0' + (n % 10) as u8;
}

/// Year, month and day in the Gregorian calendar of a day counted from 1970.
///
/// Counts in years that begin in March, so that the leap day is a year's last, and in eras of 400
/// such years, which all have 146,097 days.
fn date_of(days: u64) -> (u64, u64, u64) {
    // From 1 March of the year 0.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    // Leave out the leap days before it: one in 4 years, none in 100, one in 400.
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // From March on the months have 31, 30, 31, 30, 31 days, over and over: 153 in five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::reason::Reason;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::time::Duration;

    pub(crate) fn record() -> Record<'static> {
        Record {
            start: UNIX_EPOCH + Duration::from_millis(1_795_178_096_789),
            client: "192.0.2.7".parse().unwrap(),
            method: b"GET",
            target: b"/a?b=c",
            protocol: "HTTP/1.1",
            status: 200,
            reason: None,
            body_bytes_received: 12,
            body_bytes_sent: 345,
            duration_ns: 6_700_000,
            upstream_duration_ns: Some(5_200_000),
            host: Some(b"example.org"),
            user_agent: Some(b"curl/8"),
            referer: None,
            request_id: Some(b"id-1"),
            forwarded_for: None,
            upstream: Some("127.0.0.1:9000".parse().unwrap()),
            attempts: 1,
            listener: "main",
            route: Some("all"),
            cluster: Some("demo"),
            fallback: None,
        }
    }

    fn line(format: Format, record: &Record<'_>) -> String {
        let mut out = Vec::with_capacity(LINE_BYTES_MAX);
        let before = out.as_ptr();
        write(format, record, &mut Stamp::default(), &mut out);
        assert_eq!(before, out.as_ptr(), "the buffer grew: {} bytes", out.len());
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn json_has_the_fields_that_are_known() {
        assert_eq!(
            line(Format::Json, &record()),
            concat!(
                r#"{"@timestamp":"2026-11-20T12:34:56.789Z","client.ip":"192.0.2.7","#,
                r#""http.request.method":"GET","url.original":"/a?b=c","http.version":"1.1","#,
                r#""http.response.status_code":200,"http.request.body.bytes":12,"#,
                r#""http.response.body.bytes":345,"event.duration":6700000,"#,
                r#""url.domain":"example.org","user_agent.original":"curl/8","#,
                r#""http.request.id":"id-1","outrigger.upstream.address":"127.0.0.1:9000","#,
                r#""outrigger.upstream.duration":5200000,"outrigger.listener":"main","#,
                r#""outrigger.route":"all","outrigger.cluster":"demo"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn combined_is_as_nginx_writes_it() {
        let referred = Record { referer: Some(b"http://a/\"b"), ..record() };
        assert_eq!(
            line(Format::Combined, &referred),
            concat!(
                r#"192.0.2.7 - - [20/Nov/2026:12:34:56 +0000] "GET /a?b=c HTTP/1.1" 200 345 "#,
                r#""http://a/\x22b" "curl/8""#,
                "\n"
            )
        );
    }

    #[test]
    fn envoy_has_its_flags_and_milliseconds() {
        let refused = Record {
            reason: Some(Reason::NoEndpoint),
            status: 503,
            client: "::1".parse().unwrap(),
            upstream_duration_ns: None,
            upstream: None,
            ..record()
        };
        assert_eq!(
            line(Format::Envoy, &refused),
            concat!(
                r#"[2026-11-20T12:34:56.789Z] "GET /a?b=c HTTP/1.1" 503 UH 12 345 6 - "#,
                r#""-" "curl/8" "id-1" "example.org" "-""#,
                "\n"
            )
        );
        let answered = Record { upstream: Some("[::1]:80".parse().unwrap()), ..record() };
        assert!(
            line(Format::Envoy, &answered)
                .ends_with("- 12 345 6 5 \"-\" \"curl/8\" \"id-1\" \"example.org\" \"[::1]:80\"\n")
        );
    }

    #[test]
    fn a_request_without_a_head_has_no_request_line() {
        let none = Record {
            method: b"",
            target: b"",
            protocol: "",
            status: 400,
            reason: Some(Reason::BadHead),
            host: None,
            ..record()
        };
        assert!(line(Format::Combined, &none).contains("] \"-\" 400 "));
        assert!(line(Format::Envoy, &none).contains("] \"- - -\" 400 DPE "));
        let json: Value = serde_json::from_str(&line(Format::Json, &none)).unwrap();
        assert!(json.get("http.request.method").is_none());
        assert_eq!(json["outrigger.reason"], "bad-head");
    }

    #[test]
    fn long_fields_are_cut_and_say_so() {
        let target = vec![b'\n'; 100_000];
        let long = Record { target: &target, user_agent: Some(&target), ..record() };
        for format in [Format::Json, Format::Combined, Format::Envoy] {
            let line = line(format, &long);
            assert!(line.len() <= LINE_BYTES_MAX);
            assert_eq!(line.matches("...").count(), 2, "{format:?}");
        }
    }

    #[test]
    fn what_steers_a_screen_is_spelled_out() {
        let agent = "a\u{1b}[31m\u{85}\u{202E}é\u{7f}".as_bytes();
        let steering = Record { user_agent: Some(agent), ..record() };
        let json = line(Format::Json, &steering);
        assert!(json.contains(r#""a\u001b[31m\u0085\u202eé\u007f""#), "{json}");
        let text = line(Format::Combined, &steering);
        assert!(text.contains(r#""a\x1B[31m\xC2\x85\xE2\x80\xAE\xC3\xA9\x7F""#), "{text}");
    }

    /// Text that is likely to break something, and any bytes.
    fn nasty() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            any::<String>().prop_map(String::into_bytes),
            prop::collection::vec(
                prop::sample::select(vec![
                    &b"\n"[..],
                    b"\r\n",
                    b"\"",
                    b"\\",
                    b"\\\"",
                    b"\",\"x\":\"",
                    b"\0",
                    b"\xff",
                    b"\xc3",
                    b" ",
                    b"\x1b[2J",
                    "\u{2028}".as_bytes(),
                    b"]",
                    b"a",
                ]),
                0..20
            )
            .prop_map(|parts| parts.concat()),
            (nasty_byte(), 0usize..20_000).prop_map(|(byte, n)| vec![byte; n]),
        ]
    }

    fn nasty_byte() -> impl Strategy<Value = u8> {
        prop::sample::select(b"a\"\\\n\x00\xff".to_vec())
    }

    proptest! {
        #[test]
        fn nobody_can_forge_a_line(
            method in nasty(), target in nasty(), host in nasty(), agent in nasty(),
            referer in nasty(), id in nasty(), forwarded in nasty(),
            name in any::<String>(), numbers in any::<[u64; 4]>(), v6 in any::<u128>(),
        ) {
            let record = Record {
                method: &method,
                target: &target,
                host: Some(&host),
                user_agent: Some(&agent),
                referer: Some(&referer),
                request_id: Some(&id),
                forwarded_for: Some(&forwarded),
                listener: &name,
                route: Some(&name),
                cluster: Some(&name),
                fallback: Some(crate::fallback::Kind::LastGood),
                client: IpAddr::V6(v6.into()),
                upstream: Some(SocketAddr::new(IpAddr::V6(v6.into()), 65_535)),
                status: u16::MAX,
                attempts: u32::MAX,
                body_bytes_received: numbers[0],
                body_bytes_sent: numbers[1],
                duration_ns: numbers[2],
                upstream_duration_ns: Some(numbers[3]),
                reason: Some(Reason::AmbiguousFraming),
                ..record()
            };
            for format in [Format::Json, Format::Combined, Format::Envoy] {
                let line = line(format, &record);
                prop_assert!(line.len() <= LINE_BYTES_MAX);
                let text = line.strip_suffix('\n').expect("a newline at the end");
                prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
                match format {
                    Format::Json => {
                        let value: Value = serde_json::from_str(text).expect("JSON");
                        let told = value["user_agent.original"].as_str().unwrap();
                        let meant = String::from_utf8_lossy(&agent);
                        match told.strip_suffix("...") {
                            Some(begun) if told != meant => prop_assert!(meant.starts_with(begun)),
                            _ => prop_assert_eq!(told, meant),
                        }
                    }
                    Format::Combined => prop_assert_eq!(text.matches('"').count(), 6),
                    Format::Envoy => prop_assert_eq!(text.matches('"').count(), 12),
                }
            }
        }

        #[test]
        fn dates_agree_with_httpdate(second in 0..=SECOND_MAX, millis in 0u64..1000) {
            let time = UNIX_EPOCH + Duration::from_millis(second * 1000 + millis);
            let mut stamp = Stamp::default();
            prop_assert_eq!(u64::from(stamp.move_to(time)), millis);
            // Sun, 06 Nov 1994 08:49:37 GMT
            let theirs = httpdate::fmt_http_date(time);
            let common = std::str::from_utf8(&stamp.common).unwrap();
            let ours = common.replacen('/', " ", 2).replacen(':', " ", 1);
            prop_assert_eq!(&theirs[5..25], &ours);
            let mut iso = Vec::new();
            stamp.write_iso(millis as u32, &mut iso);
            let time_of_day = format!("{}.{millis:03}Z", &theirs[17..25]);
            prop_assert!(iso.ends_with(time_of_day.as_bytes()));
            prop_assert_eq!(&iso[..4], &theirs.as_bytes()[12..16]);
        }
    }

    #[test]
    fn times_beyond_four_digits_are_the_last_that_has_them() {
        let mut stamp = Stamp::default();
        stamp.move_to(UNIX_EPOCH + Duration::from_secs(SECOND_MAX + 5));
        assert_eq!(&stamp.iso, b"9999-12-31T23:59:59");
        stamp.move_to(UNIX_EPOCH - Duration::from_secs(5));
        assert_eq!(&stamp.iso, b"1970-01-01T00:00:00");
    }
}
