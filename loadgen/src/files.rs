//! The files that a run leaves: opened before anything is sent, so that who cannot write them hears
//! it then and not after an hour; written when the run is over. Called by `cli`.

use std::cell::Cell;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::report::{Report, hgrm, html};

/// Those that the flags name.
pub struct Files {
    /// Everything.
    pub json: Option<Out>,
    /// The distribution.
    pub hgrm: Option<Out>,
    /// The page.
    pub html: Option<Out>,
    /// Each second; written while the run runs, by others.
    pub hlog: Option<Out>,
}

impl Files {
    /// Writes all but the hlog file, and goes on after a failure. Returns a line for each.
    pub fn write(&self, reports: &[Report], best: Option<usize>, searched: bool) -> Vec<String> {
        let mut failed = Vec::new();
        if let Some(out) = &self.json {
            let wrote = out.write(|to| {
                match reports {
                    [one] if !searched => serde_json::to_writer_pretty(&mut *to, one)?,
                    several => serde_json::to_writer_pretty(&mut *to, several)?,
                }
                to.write_all(b"\n")
            });
            failed.extend(wrote.err());
        }
        if let (Some(out), Some(report)) = (&self.hgrm, best.and_then(|best| reports.get(best))) {
            failed.extend(out.write(|mut to| hgrm::write(&report.corrected, &mut to)).err());
        }
        if let Some(out) = &self.html {
            let wrote = match html::page(reports) {
                Ok(page) => out.write(|to| to.write_all(page.as_bytes())),
                Err(why) => Err(out.failed(&why)),
            };
            failed.extend(wrote.err());
        }
        failed
    }
}

/// A file to be written. What it held stays until then; if nothing comes and it was not there
/// before, it goes again.
pub struct Out {
    file: File,
    path: PathBuf,
    leave: Cell<bool>,
}

impl Out {
    /// Opens it.
    ///
    /// # Errors
    /// One line: it cannot be made or written.
    pub fn open(path: &Path) -> Result<Self, String> {
        let leave = Cell::new(path.exists());
        let file = File::options().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), leave })
    }

    /// What went wrong, in one line.
    pub fn failed(&self, why: &dyn Display) -> String {
        format!("cannot write {}: {why}", self.path.display())
    }

    /// Empties it; but for a pipe or a device, which hold nothing.
    ///
    /// # Errors
    /// As ftruncate(2).
    pub fn empty(&self) -> io::Result<()> {
        match self.file.metadata()?.is_file() {
            true => self.file.set_len(0),
            false => Ok(()),
        }
    }

    /// For whoever writes bit by bit.
    pub fn buffered(&self) -> BufWriter<&File> {
        BufWriter::new(&self.file)
    }

    /// It holds something now.
    pub fn keep(&self) {
        self.leave.set(true);
    }

    fn write(&self, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), String> {
        self.keep();
        let mut to = self.buffered();
        let wrote = self.empty().and_then(|()| fill(&mut to)).and_then(|()| to.flush());
        wrote.map_err(|error| self.failed(&error))
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if !self.leave.get() {
            // Nobody to tell: what kept us from writing it is being told.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
