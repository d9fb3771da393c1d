//! The thread that writes access logs: takes buffers from the shards, writes each with one
//! `write(2)`, gives them back. A slow disk or a reader that stands still holds up this thread
//! only; the shards then drop lines.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::shard_log::{BUFFERS_MAX, Block, ShardLog, ToWriter};
use crate::mailbox::{Inbox, Sender};
use crate::metrics::ShardCounters;

/// How long [`AccessLogs::stop`] waits for the last lines to be written.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// After a file could not be opened or written, how long until it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a pipe or terminal may take no bytes before the buffer is given up.
const STALL_MAX: Duration = Duration::from_secs(5);

/// The access logs as the control thread has them.
#[derive(Debug)]
pub struct AccessLogs {
    writer: Sender<ToWriter>,
    lines_lost: Arc<AtomicU64>,
    ended: mpsc::Receiver<()>,
}

impl AccessLogs {
    /// Starts the writer thread, and makes one handle for each shard.
    ///
    /// # Errors
    /// Where no eventfd or no thread can be had.
    pub fn start(shards: &[Arc<ShardCounters>]) -> io::Result<(AccessLogs, Vec<ShardLog>)> {
        let mut inbox = Inbox::new()?;
        let shard_logs = shards
            .iter()
            .map(|counters| ShardLog::new(inbox.sender(BUFFERS_MAX), counters.clone()))
            .collect();
        let writer = inbox.sender(4);
        let lines_lost = Arc::new(AtomicU64::new(0));
        let (end, ended) = mpsc::channel();
        let thread = Writer { inbox, files: HashMap::new(), lines_lost: lines_lost.clone() };
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            thread.run();
            // Nobody listens any more where `stop` lost its patience.
            let _ = end.send(());
        })?;
        Ok((AccessLogs { writer, lines_lost, ended }, shard_logs))
    }

    /// Closes all files and opens them again by name, after they were moved away.
    pub fn reopen(&self) {
        // Full: as many as fit are asked for already.
        let _ = self.writer.send(ToWriter::Reopen);
    }

    /// Counts the lines that could not be written.
    pub fn lines_lost(&self) -> Arc<AtomicU64> {
        self.lines_lost.clone()
    }

    /// Writes what the shards have handed over, and ends the thread. Waits two seconds at most.
    pub fn stop(self) {
        let asked = Instant::now();
        while self.writer.send(ToWriter::Stop).is_err() && asked.elapsed() < STOP_PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
        if self.ended.recv_timeout(STOP_PATIENCE).is_err() {
            tracing::warn!("the access log's last lines could not be written in time");
        }
    }
}

/// Whether a log can be written there; creates the file. For checks before it is needed.
///
/// # Errors
/// Why not.
pub fn probe(path: &str) -> io::Result<()> {
    open(path).map(drop)
}

/// `-` is standard output. Does not wait for a named pipe's reader: there, no reader is an error.
fn open(path: &str) -> io::Result<File> {
    if path == "-" {
        return Ok(rustix::stdio::stdout().try_clone_to_owned()?.into());
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// The thread's own state.
struct Writer {
    inbox: Inbox<ToWriter>,
    files: HashMap<Arc<str>, Target>,
    lines_lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self) {
        let mut stopping = false;
        loop {
            match self.inbox.pop() {
                Some(ToWriter::Block(block)) => self.write(block),
                Some(ToWriter::Reopen) => self.files.clear(),
                Some(ToWriter::Stop) => stopping = true,
                None if stopping => return,
                None => self.inbox.wait(None),
            }
        }
    }

    fn write(&mut self, block: Block) {
        let Block { path, mut buffer, lines, home } = block;
        let target = self.files.entry(path.clone()).or_default();
        if let Err(lost) = target.write(&path, &buffer) {
            // This thread is the only writer, but the count is not hot either.
            self.lines_lost.fetch_add(lines, Ordering::Relaxed);
            if let Some(error) = lost {
                tracing::error!(path = &*path, %error, "access log lines are lost");
            }
        }
        buffer.clear();
        // The shard may have gone.
        let _ = home.push(buffer);
    }
}

/// One file, open or not.
#[derive(Debug, Default)]
struct Target {
    file: Option<File>,
    /// Not tried again before; set while it fails.
    retry_at: Option<Instant>,
    /// The last write ended within a line.
    torn: bool,
}

impl Target {
    /// # Errors
    /// The buffer is lost, wholly or from some line on: `Some` the first time, `None` while it
    /// goes on failing for a while.
    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<(), Option<io::Error>> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(None);
        }
        self.try_write(path, bytes).map_err(|error| {
            // A file that failed is opened anew: it may have been on a file system that is gone.
            self.file = None;
            self.retry_at = Some(Instant::now() + RETRY_AFTER);
            Some(error)
        })?;
        self.retry_at = None;
        Ok(())
    }

    fn try_write(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => open(path)?,
        };
        if self.torn {
            write_all(&mut file, b"\n", &mut 0)?;
            self.torn = false;
        }
        let mut written = 0;
        let result = write_all(&mut file, bytes, &mut written);
        self.torn = written > 0 && bytes[written - 1] != b'\n';
        result?;
        self.file = Some(file);
        Ok(())
    }
}

/// Goes on from `written`, which afterwards says how far it came.
fn write_all(file: &mut File, bytes: &[u8], written: &mut usize) -> io::Result<()> {
    while *written < bytes.len() {
        match file.write(&bytes[*written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => *written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => await_room(file)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn await_room(file: &File) -> io::Result<()> {
    let timeout = Timespec { tv_sec: STALL_MAX.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [PollFd::new(file, PollFlags::OUT)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::tests::record;
    use super::super::{Format, Record};
    use super::*;
    use std::fs;

    fn start(shards: usize) -> (AccessLogs, Vec<ShardLog>, Vec<Arc<ShardCounters>>) {
        let counters: Vec<_> = (0..shards).map(|_| Arc::default()).collect();
        let (logs, shard_logs) = AccessLogs::start(&counters).unwrap();
        (logs, shard_logs, counters)
    }

    /// Shards share a file; every line arrives whole, and in its shard's order.
    #[test]
    fn every_line_arrives_whole() {
        const LINES: usize = 3_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (logs, shard_logs, counters) = start(3);
        let threads: Vec<_> = shard_logs
            .into_iter()
            .enumerate()
            .map(|(shard, mut log)| {
                let path = path.to_str().unwrap().to_owned();
                thread::spawn(move || {
                    let sink = log.sink(&path);
                    assert_eq!(log.sink(&path), sink, "the same file");
                    for n in 0..LINES {
                        let target = format!("/{shard}/{n}");
                        let record = Record { target: target.as_bytes(), ..record() };
                        log.log(sink, Format::Json, &record);
                        if n % 700 == 0 {
                            log.flush();
                        }
                    }
                    log.flush();
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        logs.stop();
        let dropped: u64 = counters.iter().map(|c| c.access_log_dropped.get()).sum();
        let mut next = [0; 3];
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines() {
            let json: serde_json::Value = serde_json::from_str(line).expect("a whole line");
            let target = json["url.original"].as_str().unwrap();
            let (shard, n) = target[1..].split_once('/').unwrap();
            let (shard, n): (usize, usize) = (shard.parse().unwrap(), n.parse().unwrap());
            assert!(n >= next[shard], "order");
            next[shard] = n + 1;
        }
        assert_eq!(text.lines().count() as u64 + dropped, 3 * LINES as u64);
    }

    #[test]
    fn reopening_follows_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let (logs, mut shard_logs, _) = start(1);
        let log = &mut shard_logs[0];
        let sink = log.sink(path.to_str().unwrap());
        log.log(sink, Format::Combined, &Record { target: b"/before", ..record() });
        log.flush();
        while fs::metadata(&path).map_or(0, |m| m.len()) == 0 {
            thread::yield_now();
        }
        fs::rename(&path, &moved).unwrap();
        logs.reopen();
        // Two queues have no order between them: wait until the order was taken.
        while !logs.writer.is_empty() {
            thread::yield_now();
        }
        log.log(sink, Format::Combined, &Record { target: b"/after", ..record() });
        log.flush();
        logs.stop();
        let read = |path| fs::read_to_string(path).unwrap();
        assert!(read(&moved).contains("/before") && !read(&moved).contains("/after"));
        assert!(read(&path).contains("/after") && !read(&path).contains("/before"));
    }

    /// No buffer left: lines are dropped and counted, and nothing waits.
    #[test]
    fn a_writer_that_is_behind_costs_lines_not_time() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        // A reader that never reads: the pipe takes 64 KiB, then the writer stands still.
        let reader = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let (logs, mut shard_logs, counters) = start(1);
        let log = &mut shard_logs[0];
        let sink = log.sink(fifo.to_str().unwrap());
        let agent = vec![b'a'; 1000];
        for _ in 0..4_000 {
            log.log(sink, Format::Json, &Record { user_agent: Some(&agent), ..record() });
        }
        assert!(counters[0].access_log_dropped.get() > 1_000);
        drop(reader);
        logs.stop();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_told_and_counted() {
        let (logs, mut shard_logs, _) = start(1);
        let path = "/nowhere/access.log";
        assert!(probe(path).is_err());
        let sink = shard_logs[0].sink(path);
        shard_logs[0].log(sink, Format::Json, &record());
        shard_logs[0].flush();
        let lost = logs.lines_lost();
        logs.stop();
        assert_eq!(lost.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_torn_line_is_ended_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let name = path.to_str().unwrap();
        let mut target = Target::default();
        target.write(name, b"whole\n").unwrap();
        target.write(name, b"torn").unwrap();
        target.write(name, b"next\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\ntorn\nnext\n");
    }
}
