//! Chunked bodies: taken apart by `step`, as the relay does it.

use std::hint::black_box;

use outrigger::http::body::{Chunked, Piece, chunk_header};

use crate::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "framing: step, 4 chunks of 4 KiB", prepare: || step(body(4, 4096, "")) },
    Step { name: "framing: step, 64 chunks of 16 B", prepare: || step(body(64, 16, "")) },
    Step {
        name: "framing: step, 4 chunks with extensions",
        prepare: || step(body(4, 4096, ";a=b")),
    },
    Step { name: "framing: step, 1 chunk and 2 trailers", prepare: || step(with_trailers()) },
    Step { name: "framing: chunk header", prepare: header },
];

/// So many chunks of so many bytes, and the end.
fn body(chunks: usize, bytes: usize, extension: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..chunks {
        body.extend_from_slice(format!("{bytes:x}{extension}\r\n").as_bytes());
        body.resize(body.len() + bytes, b'x');
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

fn with_trailers() -> Vec<u8> {
    b"10\r\n0123456789abcdef\r\n0\r\nGrpc-Status: 0\r\nGrpc-Message: fine\r\n\r\n".to_vec()
}

fn step(body: Vec<u8>) -> Work {
    Box::new(move || {
        let mut chunked = Chunked::new(false);
        let mut rest = black_box(&body[..]);
        loop {
            let (len, piece) = chunked.step(rest).expect("a body");
            rest = &rest[len..];
            if black_box(piece) == Piece::End {
                break;
            }
        }
    })
}

fn header() -> Work {
    Box::new(|| {
        let mut line = [0; 18];
        black_box(chunk_header(black_box(16_384), &mut line));
    })
}
