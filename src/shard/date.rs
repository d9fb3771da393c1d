//! The `Date` of the answers that we make, formatted once a second.

use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime};

use crate::time::Nanos;

/// How long a formatted date is used.
const FRESH_FOR: Duration = Duration::from_millis(500);

/// The current date, as RFC 9110, 5.6.7 writes it.
#[derive(Default)]
pub struct Date {
    text: RefCell<[u8; 29]>,
    until: Cell<Nanos>,
}

impl Date {
    /// The date now.
    pub fn get(&self, now: Nanos) -> [u8; 29] {
        use std::io::Write;
        if now >= self.until.get() {
            self.until.set(now + FRESH_FOR);
            let date = httpdate::HttpDate::from(SystemTime::now());
            let written = write!(&mut self.text.borrow_mut()[..], "{date}");
            debug_assert!(written.is_ok(), "IMF-fixdate has 29 bytes");
        }
        *self.text.borrow()
    }
}
