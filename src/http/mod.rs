//! HTTP/1.1 as bytes: what arrives is parsed in place, what leaves is built in one pass. No
//! sockets in here.

pub mod head;

pub mod field;

pub mod target;

pub mod path;

pub mod forwarded;

pub mod deadline;

pub mod body;

pub mod encode;
