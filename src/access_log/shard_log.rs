//! One shard's side of the access logs: its buffers, and the hand-over to the writer.
//!
//! The shard calls [`ShardLog::sink`] when it takes over a plan, [`ShardLog::log`] for each
//! request, and [`ShardLog::flush`] on a tick of its own. Nothing here blocks or makes a system
//! call, except to wake the writer: on the tick, or when it is behind.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use super::line::{self, LINE_BYTES_MAX, Stamp};
use super::{Format, Record};
use crate::mailbox::Sender;
use crate::metrics::ShardCounters;

/// Bytes of one buffer: some 150 to 300 lines, at least four of the longest.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers that one shard may have at most, those in the writer's hands among them: 1 MiB is what
/// it may be behind before lines are dropped. Made when first needed, kept from then on.
pub(super) const BUFFERS_MAX: usize = 16;

/// From so many buffers in the writer's hands on, it is woken before the tick.
const BEHIND: usize = BUFFERS_MAX / 2;

/// One shard's handle on a file; good for the shard's whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkIndex(usize);

/// Lines that wait for one file.
#[derive(Debug)]
struct Sink {
    path: Arc<str>,
    /// `None` until there is a line.
    buffer: Option<Vec<u8>>,
    lines: u64,
}

/// What the writer gets: a buffer, where it belongs, and where it goes when it is empty.
#[derive(Debug)]
pub(super) struct Block {
    pub path: Arc<str>,
    pub buffer: Vec<u8>,
    pub lines: u64,
    pub home: Arc<ArrayQueue<Vec<u8>>>,
}

/// What the writer is told.
#[derive(Debug)]
pub(super) enum ToWriter {
    Block(Block),
    /// Close all files and open them again by name.
    Reopen,
    /// Write what is there, then end.
    Stop,
}

/// The access logs as one shard has them.
#[derive(Debug)]
pub struct ShardLog {
    sinks: Vec<Sink>,
    writer: Sender<ToWriter>,
    /// Empty buffers; the writer puts them here.
    home: Arc<ArrayQueue<Vec<u8>>>,
    /// Buffers made so far.
    buffers: usize,
    stamp: Stamp,
    counters: Arc<ShardCounters>,
}

impl ShardLog {
    pub(super) fn new(writer: Sender<ToWriter>, counters: Arc<ShardCounters>) -> ShardLog {
        ShardLog {
            sinks: Vec::new(),
            writer,
            home: Arc::new(ArrayQueue::new(BUFFERS_MAX)),
            buffers: 0,
            stamp: Stamp::default(),
            counters,
        }
    }

    /// The sink for a path; the same path gives the same one, so listeners can share a file.
    /// `-` is standard output. The writer opens the file when its first line arrives.
    pub fn sink(&mut self, path: &str) -> SinkIndex {
        if let Some(known) = self.sinks.iter().position(|sink| &*sink.path == path) {
            return SinkIndex(known);
        }
        self.sinks.push(Sink { path: path.into(), buffer: None, lines: 0 });
        SinkIndex(self.sinks.len() - 1)
    }

    /// Formats one line. Dropped and counted where no buffer is free.
    pub fn log(&mut self, sink: SinkIndex, format: Format, record: &Record<'_>) {
        let SinkIndex(index) = sink;
        let room = self.sinks[index].buffer.as_ref().map(|b| b.capacity() - b.len());
        if room.is_some_and(|room| room < LINE_BYTES_MAX) {
            self.hand_over(index);
        }
        if self.sinks[index].buffer.is_none() {
            self.sinks[index].buffer = self.take_buffer();
        }
        let sink = &mut self.sinks[index];
        match &mut sink.buffer {
            Some(buffer) => {
                line::write(format, record, &mut self.stamp, buffer);
                sink.lines += 1;
            }
            None => {
                self.counters.access_log_dropped.add(1);
                // It may sleep with nothing but our quiet messages before it.
                self.writer.ring();
            }
        }
    }

    /// Hands over all lines that wait, and wakes the writer. On a tick, and before the end.
    pub fn flush(&mut self) {
        for index in 0..self.sinks.len() {
            self.hand_over(index);
        }
        if !self.writer.is_empty() {
            self.writer.ring();
        }
    }

    /// Lines wait, here or for the writer: a tick is needed.
    pub fn needs_flush(&self) -> bool {
        self.sinks.iter().any(|sink| sink.buffer.is_some()) || !self.writer.is_empty()
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        if let Some(empty) = self.home.pop() {
            return Some(empty);
        }
        if self.buffers == BUFFERS_MAX {
            return None;
        }
        self.buffers += 1;
        Some(Vec::with_capacity(BUFFER_BYTES))
    }

    fn hand_over(&mut self, index: usize) {
        let sink = &mut self.sinks[index];
        let Some(buffer) = sink.buffer.take() else { return };
        let lines = std::mem::take(&mut sink.lines);
        let home = self.home.clone();
        let block = ToWriter::Block(Block { path: sink.path.clone(), buffer, lines, home });
        let result = if self.writer.len() < BEHIND {
            self.writer.send_quietly(block)
        } else {
            self.writer.send(block)
        };
        // The queue has a place for every buffer that exists, so this does not happen; if it
        // did, the lines would be lost and the buffer not.
        if let Err(ToWriter::Block(mut block)) = result {
            self.counters.access_log_dropped.add(block.lines);
            block.buffer.clear();
            let _ = self.home.push(block.buffer);
        }
    }
}
