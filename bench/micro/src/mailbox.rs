//! The queues between threads, while the receiver is awake: waking it is the kernel's work, which
//! counts of instructions do not see.

use std::hint::black_box;

use outrigger::mailbox::{Inbox, Sender};
use outrigger::shard::message::ToShard;

use crate::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "mailbox: send and pop", prepare: || there_and_back(Sender::send) },
    Step {
        name: "mailbox: send quietly and pop",
        prepare: || there_and_back(Sender::send_quietly),
    },
    Step { name: "mailbox: look into 1 empty queue", prepare: || look(1) },
    Step { name: "mailbox: look into 64 empty queues", prepare: || look(64) },
];

/// Messages that a queue holds.
const CAPACITY: usize = 64;

fn there_and_back(send: fn(&Sender<ToShard>, ToShard) -> Result<(), ToShard>) -> Work {
    let mut inbox = Inbox::new().expect("a descriptor");
    let sender = inbox.sender(CAPACITY);
    Box::new(move || {
        send(&sender, black_box(ToShard::StopNow)).expect("room");
        black_box(inbox.pop());
    })
}

fn look(queues: usize) -> Work {
    let mut inbox = Inbox::<ToShard>::new().expect("a descriptor");
    let senders: Vec<_> = (0..queues).map(|_| inbox.sender(CAPACITY)).collect();
    Box::new(move || {
        black_box(&senders);
        black_box(inbox.pop());
    })
}
