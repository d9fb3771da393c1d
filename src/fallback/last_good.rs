//! Which answers are kept to be given again in place of a failure, and to whom: the rules of shared
//! caches (RFC 9111, 3 and 4), read strictly, since nobody wants to be shown another one's page. Pure.
//!
//! What is asked for is told by the head that goes to the origin: an answer may depend on what is in
//! there, and on nothing else.

use std::time::Duration;

use super::directives::{OfAnswer, OfRequest, seconds};
use super::store::{Kept, Store, Varied};
use crate::answer::LIMITS;
use crate::http::field::Fields;
use crate::http::head::{
    FieldKind, Framing, HeadLimits, Method, Parsed, RequestHead, Scratch, parse_answer,
    parse_request,
};
use crate::plan::LastGood;
use crate::shard::buffers::HEAD_BYTES_MAX;
use crate::time::Nanos;

/// Statuses that say what there is, or that there is nothing (any more). Others say something about
/// this one request.
const STATUSES: [u16; 6] = [200, 203, 301, 308, 404, 410];

/// What we have written ourselves is taken as it is.
const WRITTEN: HeadLimits = HeadLimits {
    uri_bytes_max: HEAD_BYTES_MAX,
    head_bytes_max: usize::MAX,
    fields_max: usize::MAX,
    lenient_line_ends: false,
};

/// What a request asks for, by the head that goes to the origin.
struct Asked<'b, 'h> {
    /// Its target, and by which names and scheme it is known.
    key: Vec<u8>,
    head: RequestHead<'b, 'h>,
    directives: OfRequest,
    /// It says who asks.
    has_credentials: bool,
}

impl<'b, 'h> Asked<'b, 'h> {
    fn of(sent: &'b [u8], scratch: &'h mut Scratch<'b>) -> Option<Asked<'b, 'h>> {
        let Ok(Parsed::Complete(head)) = parse_request(sent, &WRITTEN, scratch) else {
            return None;
        };
        let mut key = head.target.path()?.to_vec();
        if let Some(query) = head.target.query() {
            key.push(b'?');
            key.extend_from_slice(query);
        }
        key.push(b'\n');
        key.extend_from_slice(&head.host.to_ascii_lowercase());
        for kind in [FieldKind::XForwardedHost, FieldKind::XForwardedProto] {
            key.push(b'\n');
            for (_, _, value) in head.fields.iter().filter(|(other, ..)| *other == kind) {
                key.extend_from_slice(&value.to_ascii_lowercase());
                key.push(b',');
            }
        }
        let has = |name: &[u8]| head.fields.iter().any(|it| it.1.eq_ignore_ascii_case(name));
        let has_credentials = has(b"authorization") || has(b"cookie");
        Some(Asked { key, directives: OfRequest::of(&head.fields), has_credentials, head })
    }

    fn fits(&self, kept: &Kept) -> bool {
        (kept.is_shared || !self.has_credentials)
            && kept.vary.iter().all(|(name, value)| said(&self.head.fields, name) == *value)
    }

    /// Whether it may get an answer that was kept.
    fn takes_any(&self) -> bool {
        matches!(self.head.method, Method::Get | Method::Head)
            && self.head.framing == Framing::None
            && !self.is_upgrade()
            && !self.directives.no_cache
    }

    fn is_upgrade(&self) -> bool {
        self.head.upgrade.is_some()
    }
}

/// What a request says in a field, in all its lines.
fn said(fields: &Fields<'_, '_>, name: &[u8]) -> Option<Box<[u8]>> {
    let mut lines = fields.iter().filter(|(_, field, _)| field.eq_ignore_ascii_case(name));
    let mut all = lines.next()?.2.to_vec();
    for (_, _, value) in lines {
        all.extend_from_slice(b", ");
        all.extend_from_slice(value);
    }
    Some(all.into())
}

/// The fields that an answer varies by; `None`: it fits no other request.
fn varies_by(asked: &Fields<'_, '_>, answer: &Fields<'_, '_>) -> Option<Vec<Varied>> {
    let mut vary = Vec::new();
    let lines = answer.iter().filter(|(_, name, _)| name.eq_ignore_ascii_case(b"vary"));
    for name in lines.flat_map(|(_, _, value)| value.split(|byte| *byte == b',')) {
        match name.trim_ascii() {
            b"" => {}
            b"*" => return None,
            name => vary.push((name.to_ascii_lowercase().into(), said(asked, name))),
        }
    }
    Some(vary)
}

/// An answer to be kept, of which the body is still coming.
#[derive(Debug)]
pub struct Keeping {
    key: Vec<u8>,
    kept: Kept,
    body: Vec<u8>,
    body_bytes_max: usize,
}

impl Keeping {
    /// Takes a piece of the body. `false`: it is too large to be kept.
    pub fn take(&mut self, piece: &[u8]) -> bool {
        let fits = self.body.len() + piece.len() <= self.body_bytes_max;
        if fits {
            self.body.extend_from_slice(piece);
        }
        fits
    }

    /// That was all of it.
    pub fn finish(self, store: &mut Store) {
        let Keeping { key, kept, body, .. } = self;
        let kept = Kept { body: body.into(), ..kept };
        let vary = kept.vary.clone();
        // One that says more or other fields to vary by does not fit in its place.
        store.keep(&key, kept, |other| other.vary == vary);
    }
}

/// What an exchange has brought, as far as that concerns what is kept.
pub struct Seen<'a> {
    /// What was sent to the origin, its head at the beginning.
    pub sent: &'a [u8],
    /// The head of the answer, as it came.
    pub head: &'a [u8],
    /// Its status is a failure for the fallback, or for retries.
    pub is_failure: bool,
    /// It comes from a cluster that the route names.
    pub is_own: bool,
    /// The date now.
    pub date: [u8; 29],
    /// The time now.
    pub now: Nanos,
}

/// Looks at an answer: whether it is kept, and what is to be forgotten for it.
pub fn look(store: &mut Store, settings: &LastGood, seen: &Seen<'_>) -> Option<Keeping> {
    let (mut asked_scratch, mut answer_scratch) = (Scratch::new(), Scratch::new());
    let asked = Asked::of(seen.sent, &mut asked_scratch)?;
    let parsed = parse_answer(seen.head, &LIMITS, asked.head.method, &mut answer_scratch);
    let Ok(Parsed::Complete(answer)) = parsed else { return None };
    if !asked.head.method.safe() {
        if answer.status < 400 {
            // It has changed what there is (RFC 9111, 4.4).
            store.remove(&asked.key, |_| true);
        }
        return None;
    }
    let is_get = asked.head.method == Method::Get && asked.head.framing == Framing::None;
    if !is_get
        || asked.is_upgrade()
        || asked.directives.no_store
        || seen.is_failure
        || !seen.is_own
        || !STATUSES.contains(&answer.status)
    {
        return None;
    }
    let has = |name: &[u8]| answer.fields.iter().any(|it| it.1.eq_ignore_ascii_case(name));
    let said = OfAnswer::of(&answer.fields);
    let vary = varies_by(&asked.head.fields, &answer.fields);
    if said.only_once || has(b"set-cookie") || vary.is_none() {
        // What was for everybody no more is: unless that is about who asks.
        if !asked.has_credentials {
            store.remove(&asked.key, |kept| asked.fits(kept));
        }
        return None;
    }
    let whole = match answer.framing {
        Framing::None => Some(0),
        Framing::Length(length) => usize::try_from(length).ok(),
        Framing::Chunked => Some(0),
        // Whether that is all, nobody can tell.
        Framing::UntilClose => None,
    };
    let whole = whole.filter(|length| *length <= settings.answer_bytes_max)?;
    if (asked.has_credentials && !said.is_shared) || has(b"trailer") || has(b"content-range") {
        return None;
    }
    let is_new = |kept: &Kept| seen.now.since(kept.since) < settings.refresh_after;
    if store.look(&asked.key, seen.now, |kept| asked.fits(kept)).is_some_and(|kept| is_new(&kept)) {
        return None;
    }
    let kept = Kept {
        head: seen.head.into(),
        body: Box::default(),
        date: seen.date,
        vary: vary?,
        is_shared: said.is_shared,
        age: answer.fields.get(b"age").and_then(seconds).unwrap_or_default(),
        since: seen.now,
        usable_for: said.usable_for(expires(&answer.fields, &seen.date), settings.age_max),
        used: Default::default(),
    };
    if !kept.is_usable(seen.now) {
        if !asked.has_credentials {
            // The one before would be given in its place.
            store.remove(&asked.key, |kept| asked.fits(kept));
        }
        return None;
    }
    let body = Vec::with_capacity(whole);
    Some(Keeping { key: asked.key, kept, body, body_bytes_max: settings.answer_bytes_max })
}

/// How long an answer is fresh by `Expires`; one that cannot be read has expired (RFC 9111, 5.3).
fn expires(fields: &Fields<'_, '_>, now: &[u8; 29]) -> Option<Duration> {
    let date = |value: &[u8]| httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok();
    let expires = date(fields.get(b"expires")?);
    let made = fields.first(FieldKind::Date).and_then(date).or_else(|| date(now));
    let fresh = expires.zip(made).and_then(|(expires, made)| expires.duration_since(made).ok());
    Some(fresh.unwrap_or_default())
}

/// The answer that may be given to a request that has failed.
pub fn find(
    store: &mut Store,
    settings: &LastGood,
    sent: &[u8],
    now: Nanos,
) -> Option<std::rc::Rc<Kept>> {
    let mut scratch = Scratch::new();
    let asked = Asked::of(sent, &mut scratch).filter(Asked::takes_any)?;
    // A reload may have made that shorter than it was when the answer came.
    let fits = |kept: &Kept| asked.fits(kept) && kept.age(now) < settings.age_max;
    store.find(&asked.key, now, fits)
}

/// Whether this is a request, as it goes to the origin, to which such an answer is given at all.
pub fn is_for(sent: &[u8]) -> bool {
    Asked::of(sent, &mut Scratch::new()).is_some_and(|asked| asked.takes_any())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const SETTINGS: LastGood = LastGood {
        age_max: Duration::from_secs(3600),
        bytes_max: 1 << 20,
        answer_bytes_max: 1000,
        refresh_after: Duration::ZERO,
    };

    const DATE: [u8; 29] = *b"Mon, 23 Nov 2026 05:00:00 GMT";

    /// A store, and a time.
    struct World(Store, u64);

    impl World {
        fn new() -> World {
            World(Store::new(1 << 20, Arc::default()), 0)
        }

        /// An answer with these lines, whose body is their number; whether it is kept.
        fn answer(&mut self, request: &str, status: u16, lines: &str) -> bool {
            self.see(request, status, lines, &SETTINGS, true)
        }

        fn see(
            &mut self,
            request: &str,
            status: u16,
            lines: &str,
            settings: &LastGood,
            is_own: bool,
        ) -> bool {
            let body = format!("{status} {lines}");
            let head =
                format!("HTTP/1.1 {status} X\r\n{lines}Content-Length: {}\r\n\r\n", body.len());
            let seen = Seen {
                sent: request.as_bytes(),
                head: head.as_bytes(),
                is_failure: status >= 500,
                is_own,
                date: DATE,
                now: Nanos(self.1 * 1_000_000_000),
            };
            let Some(mut keeping) = look(&mut self.0, settings, &seen) else { return false };
            assert!(keeping.take(body.as_bytes()));
            keeping.finish(&mut self.0);
            true
        }

        fn find(&mut self, request: &str) -> Option<String> {
            let now = Nanos(self.1 * 1_000_000_000);
            let kept = find(&mut self.0, &SETTINGS, request.as_bytes(), now)?;
            Some(String::from_utf8(kept.body.to_vec()).unwrap())
        }
    }

    fn get(path: &str, lines: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
    }

    #[test]
    fn which_answers_are_kept() {
        let plain = get("/", "");
        for (request, status, lines, is_kept) in [
            (plain.clone(), 200, "", true),
            (plain.clone(), 404, "", true),
            (plain.clone(), 301, "Location: /x\r\n", true),
            (plain.clone(), 302, "Location: /x\r\n", false),
            (plain.clone(), 206, "Content-Range: bytes 0-1/2\r\n", false),
            (plain.clone(), 401, "", false),
            (plain.clone(), 500, "", false),
            (plain.clone(), 200, "Set-Cookie: a=b\r\n", false),
            (plain.clone(), 200, "Cache-Control: no-store\r\n", false),
            (plain.clone(), 200, "Cache-Control: private\r\n", false),
            (plain.clone(), 200, "Cache-Control: no-cache\r\n", false),
            (plain.clone(), 200, "Vary: *\r\n", false),
            (plain.clone(), 200, "Vary: accept, *\r\n", false),
            (plain.clone(), 200, "Vary: accept, cookie\r\n", true),
            (plain.clone(), 200, "Trailer: x\r\n", false),
            (plain.clone(), 200, "Age: 3599\r\n", true),
            (plain.clone(), 200, "Age: 3600\r\n", false),
            (plain.clone(), 200, "Cache-Control: must-revalidate\r\n", false),
            (plain.clone(), 200, "Cache-Control: max-age=9, must-revalidate\r\n", true),
            (plain.clone(), 200, "Expires: 0\r\nCache-Control: must-revalidate\r\n", false),
            (get("/", "Cache-Control: no-store\r\n"), 200, "", false),
            (get("/", "Range: bytes=0-1\r\n"), 200, "", true),
            (get("/", "Authorization: x\r\n"), 200, "", false),
            (get("/", "Authorization: x\r\n"), 200, "Cache-Control: max-age=9\r\n", false),
            (get("/", "Authorization: x\r\n"), 200, "Cache-Control: public\r\n", true),
            (get("/", "Cookie: a=b\r\n"), 200, "", false),
            (get("/", "Cookie: a=b\r\n"), 200, "Cache-Control: s-maxage=9\r\n", true),
            (get("/", "Connection: upgrade\r\nUpgrade: x\r\n"), 200, "", false),
            (plain.replace("GET", "HEAD"), 200, "", false),
            (plain.replace("GET", "POST"), 200, "", false),
            (get("/", "Content-Length: 1\r\n"), 200, "", false),
        ] {
            let mut world = World::new();
            assert_eq!(
                world.answer(&request, status, lines),
                is_kept,
                "{request} {status} {lines}"
            );
            assert_eq!(world.find(&plain).is_some(), is_kept, "{request} {status} {lines}");
        }
    }

    #[test]
    fn not_of_other_clusters_nor_what_is_too_large() {
        let (mut world, plain) = (World::new(), get("/", ""));
        assert!(!world.see(&plain, 200, "", &SETTINGS, false));
        let small = LastGood { answer_bytes_max: 3, ..SETTINGS };
        assert!(!world.see(&plain, 200, "", &small, true));
        let seen = Seen {
            sent: plain.as_bytes(),
            head: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            is_failure: false,
            is_own: true,
            date: DATE,
            now: Nanos(0),
        };
        let mut keeping = look(&mut world.0, &small, &seen).expect("so far");
        assert!(keeping.take(b"ab") && !keeping.take(b"cd"));
        let until_close = Seen { head: b"HTTP/1.1 200 OK\r\n\r\n", ..seen };
        assert!(look(&mut world.0, &small, &until_close).is_none());
    }

    #[test]
    fn for_which_requests() {
        let mut world = World::new();
        assert!(world.answer(&get("/a?b=c", ""), 200, "X: 1\r\n"));
        let found = |world: &mut World, request: &str| world.find(request).is_some();
        assert!(found(&mut world, &get("/a?b=c", "")));
        assert!(found(&mut world, &get("/a?b=c", "").replace("GET", "HEAD")));
        for other in [
            get("/a", ""),
            get("/a?b=C", ""),
            get("/a?b=c", "").replace("Host: a", "Host: b"),
            get("/a?b=c", "X-Forwarded-Host: b\r\n"),
            get("/a?b=c", "X-Forwarded-Proto: https\r\n"),
            get("/a?b=c", "").replace("GET", "POST"),
            get("/a?b=c", "Cache-Control: no-cache\r\n"),
            get("/a?b=c", "Cookie: a=b\r\n"),
            get("/a?b=c", "Authorization: x\r\n"),
            get("/a?b=c", "Connection: upgrade\r\nUpgrade: x\r\n"),
        ] {
            assert!(!found(&mut world, &other), "{other}");
        }
        assert!(world.answer(&get("/a?b=c", ""), 200, "Cache-Control: public\r\n"));
        assert!(found(&mut world, &get("/a?b=c", "Cookie: a=b\r\n")));
    }

    #[test]
    fn variants_are_told_apart() {
        let mut world = World::new();
        let vary = "Vary: Accept-Encoding, X-Lang\r\n";
        let gzip = get("/", "accept-encoding: gzip\r\n");
        let plain = get("/", "");
        assert!(world.answer(&gzip, 200, &format!("{vary}X: gzip\r\n")));
        assert_eq!(world.find(&plain), None);
        assert!(world.answer(&plain, 200, &format!("{vary}X: plain\r\n")));
        assert!(world.find(&gzip).unwrap().contains("gzip"));
        assert!(world.find(&plain).unwrap().contains("plain"));
        let split = get("/", "Accept-Encoding: gzip\r\nAccept-Encoding: br\r\n");
        assert_eq!(world.find(&split), None);
        // The newest that fits is taken, whatever it varies by.
        world.1 = 1;
        assert!(world.answer(&plain, 200, "X: all\r\n"));
        assert!(world.find(&gzip).unwrap().contains("all"));
    }

    #[test]
    fn how_long() {
        let mut world = World::new();
        let request = get("/", "");
        assert!(world.answer(&request, 200, "Cache-Control: max-age=5, stale-if-error=5\r\n"));
        world.1 = 9;
        assert!(world.find(&request).is_some());
        world.1 = 10;
        assert!(world.find(&request).is_none());
        let lines = "Date: Mon, 23 Nov 2026 05:00:00 GMT\r\n\
                     Expires: Mon, 23 Nov 2026 05:00:07 GMT\r\nCache-Control: stale-if-error=1\r\n";
        assert!(world.answer(&request, 200, lines));
        world.1 = 17;
        assert!(world.find(&request).is_some());
        world.1 = 18;
        assert!(world.find(&request).is_none());
    }

    #[test]
    fn what_has_changed_is_forgotten() {
        let mut world = World::new();
        let request = get("/", "");
        let post = request.replace("GET", "POST");
        world.answer(&request, 200, "");
        world.answer(&post, 500, "");
        assert!(world.find(&request).is_some(), "nothing has changed");
        world.answer(&post, 303, "");
        assert!(world.find(&request).is_none());
        world.answer(&request, 200, "");
        world.answer(&request, 200, "Cache-Control: no-store\r\n");
        assert!(world.find(&request).is_none(), "it is not for everybody any more");
        world.answer(&request, 200, "");
        world.answer(&request, 200, "Cache-Control: must-revalidate\r\n");
        assert!(world.find(&request).is_none(), "it is stale, and must not be given");
        world.answer(&request, 200, "");
        world.answer(&get("/", "Cookie: a=b\r\n"), 200, "Cache-Control: private\r\n");
        assert!(world.find(&request).is_some(), "that was for one");
    }

    #[test]
    fn one_that_is_new_is_not_taken_again() {
        let mut world = World::new();
        let settings = LastGood { refresh_after: Duration::from_secs(2), ..SETTINGS };
        let request = get("/", "");
        assert!(world.see(&request, 200, "X: 1\r\n", &settings, true));
        world.1 = 1;
        assert!(!world.see(&request, 200, "X: 2\r\n", &settings, true));
        world.1 = 2;
        assert!(world.see(&request, 200, "X: 3\r\n", &settings, true));
        assert!(world.find(&request).unwrap().contains("X: 3"));
    }
}
