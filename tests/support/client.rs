//! A client that sends whatever bytes a test wants, and reads answers strictly.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};

use socket2::{Domain, Socket, Type};

use super::wire::{Broken, show};
use super::{Message, PATIENCE, Wire};

/// One connection to the proxy.
pub struct Client(Wire);

impl Deref for Client {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.0
    }
}

impl Client {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the proxy accepts");
        Client(Wire::new(stream))
    }

    /// From another address of this machine, 127.0.0.2 for instance.
    #[track_caller]
    pub fn connect_from(local: &str, address: SocketAddr) -> Client {
        let local: IpAddr = local.parse().expect("an address");
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(local, 0).into()).expect("a local address");
        socket.connect_timeout(&address.into(), PATIENCE).expect("the proxy accepts");
        Client(Wire::new(socket.into()))
    }

    pub fn into_wire(self) -> Wire {
        self.0
    }

    /// The answer to a GET.
    #[track_caller]
    pub fn answer(&mut self) -> Message {
        self.answer_to("GET")
    }

    /// One answer, interim ones included.
    #[track_caller]
    pub fn answer_to(&mut self, method: &str) -> Message {
        match self.try_answer_to(method) {
            Ok(answer) => answer,
            Err(Broken { received, end }) => {
                panic!("no whole answer ({end:?}): {:?}", show(&received))
            }
        }
    }

    /// The same, where it may be cut off.
    #[track_caller]
    pub fn try_answer_to(&mut self, method: &str) -> Result<Message, Broken> {
        self.0.try_message(|answer| {
            let status = answer.status();
            let bodiless = status < 200 || status == 204 || status == 304;
            if bodiless {
                assert!(!answer.has("transfer-encoding"), "{answer:?}");
            }
            bodiless || method == "HEAD"
        })
    }

    #[track_caller]
    pub fn try_answer(&mut self) -> Result<Message, Broken> {
        self.try_answer_to("GET")
    }

    /// Only the head of an answer.
    #[track_caller]
    pub fn answer_head(&mut self) -> Message {
        let head = self.0.read_until("\r\n\r\n");
        Message::parse(&head)
    }

    /// Sends a request, and reads its answer.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        let request = request.as_ref();
        self.send(request);
        let method = request.split(|byte| *byte == b' ').next().unwrap_or_default();
        self.answer_to(&String::from_utf8_lossy(method))
    }

    /// A GET of this path.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Message {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: example.org\r\n\r\n"))
    }

    /// A POST of this body.
    #[track_caller]
    pub fn post(&mut self, path: &str, body: &str) -> Message {
        let length = body.len();
        self.ask(format!(
            "POST {path} HTTP/1.1\r\nHost: example.org\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }
}
