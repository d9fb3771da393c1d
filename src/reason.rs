//! Why an exchange did not end with an answer of the origin's: one list for the status, the
//! `x-outrigger-reason` header, the access log's flags and the metrics.

/// A reason for an answer of our own, or for a connection that ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The head breaks RFC 9110 or 9112: 400 and close.
    BadHead,
    /// Framing that two parsers could read differently (RFC 9112, 6.3): 400 and close.
    AmbiguousFraming,
    /// A transfer coding other than `chunked` (RFC 9112, 6.1): 501 and close.
    UnknownCoding,
    /// A version other than HTTP/1.0 and HTTP/1.1: 505 and close.
    BadVersion,
    /// The request target is longer than the listener allows: 414 and close.
    UriTooLong,
    /// More header bytes or fields than the listener allows: 431 and close.
    HeadTooLarge,
    /// A path that the listener's policy refuses: 400.
    BadPath,
    /// The body is larger than the listener allows: 413 and close.
    BodyTooLarge,
    /// Chunk sizes, chunk line ends or trailers that are malformed: 400 and close.
    BadBody,
    /// CONNECT: this is no open proxy. 405.
    ConnectRefused,
    /// `Max-Forwards: 0` was reached, and we answer ourselves (RFC 9110, 7.6.2): 200.
    MaxForwards,
    /// No route matches: 404.
    NoRoute,
    /// The cluster has no endpoint: 503.
    NoEndpoint,
    /// The endpoint refused the connection, or could not be reached: 503.
    ConnectFailed,
    /// The endpoint did not accept the connection in time: 504.
    ConnectTimeout,
    /// No answer within the route's limit: 504.
    AnswerTimeout,
    /// The whole exchange took longer than the route's limit: 504, or cut off.
    TotalTimeout,
    /// Nothing moved in either direction for too long after the answer began: cut off.
    StreamIdle,
    /// The endpoint closed or reset before its answer: 502.
    UpstreamReset,
    /// The endpoint's answer breaks RFC 9112: 502.
    BadAnswer,
    /// The endpoint's answer ended before its announced end: cut off.
    AnswerTruncated,
    /// The head did not arrive in time: 408 and close.
    HeaderTimeout,
    /// The request body did not move: 408 and close.
    BodyTimeout,
    /// The client does not read its answer: reset.
    ClientStalled,
    /// The client left before its answer was complete: nobody to answer.
    ClientGone,
    /// Too many connections on the listener, from one address, or descriptors: closed, or 503. Or
    /// as many to the endpoints as may be, and none may wait for one: 503.
    ConnectionLimit,
    /// We are shutting down and time is up: cut off.
    DrainTimeout,
    /// No descriptor (or port) is left for a connection to the endpoint: 503.
    OutOfDescriptors,
    /// A chunked body for an endpoint that speaks HTTP/1.0 (RFC 9112, 6.1): 411.
    LengthRequired,
    /// TRACE with `Max-Forwards: 0`: we do not echo what may hold secrets. 405.
    TraceRefused,
    /// A breaker is open, and there is no other endpoint: 503.
    BreakerOpen,
    /// The cluster, or the endpoint, has as many requests as it may, and none may wait: 503.
    RequestLimit,
    /// As many requests wait for a place as may: 503.
    PendingLimit,
    /// No place became free in time: 503.
    PendingTimeout,
    /// No answer within the route's limit for one try, and no further one: 504.
    TryTimeout,
    /// The time that the caller gave is over: 504, or cut off.
    Deadline,
    /// Requests have queued for too long, in the shard's loop or for a place: 503.
    Overloaded,
    /// Too many of the cluster's requests fail, and this one was refused by chance: 503.
    AdmissionControl,
    /// A rate limit of the route has no token for the request: 429.
    RateLimited,
    /// The shard that decides about a token did not answer in time: 429.
    RateLimitUnanswered,
    /// The endpoint's answer was given up for a fallback, for its status: the fallback's.
    UpstreamStatus,
}

/// Whose fault a [`Reason`] is; metrics and, later, breakers ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The client's.
    Client,
    /// The endpoint's.
    Upstream,
    /// Ours: configuration, capacity or shutdown.
    Ours,
}

/// What is told of a reason: status, name and Envoy's response flag.
struct Facts {
    status: u16,
    name: &'static str,
    flag: &'static str,
    fault: Fault,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Reason; 41] = {
        use Reason::*;
        [
            BadHead,
            AmbiguousFraming,
            UnknownCoding,
            BadVersion,
            UriTooLong,
            HeadTooLarge,
            BadPath,
            BodyTooLarge,
            BadBody,
            ConnectRefused,
            MaxForwards,
            NoRoute,
            NoEndpoint,
            ConnectFailed,
            ConnectTimeout,
            AnswerTimeout,
            TotalTimeout,
            StreamIdle,
            UpstreamReset,
            BadAnswer,
            AnswerTruncated,
            HeaderTimeout,
            BodyTimeout,
            ClientStalled,
            ClientGone,
            ConnectionLimit,
            DrainTimeout,
            OutOfDescriptors,
            LengthRequired,
            TraceRefused,
            BreakerOpen,
            RequestLimit,
            PendingLimit,
            PendingTimeout,
            TryTimeout,
            Deadline,
            Overloaded,
            AdmissionControl,
            RateLimited,
            RateLimitUnanswered,
            UpstreamStatus,
        ]
    };

    const fn facts(self) -> Facts {
        use Fault::*;
        use Reason::*;
        let (status, name, flag, fault) = match self {
            BadHead => (400, "bad-head", "DPE", Client),
            AmbiguousFraming => (400, "ambiguous-framing", "DPE", Client),
            UnknownCoding => (501, "unknown-coding", "DPE", Client),
            BadVersion => (505, "bad-version", "DPE", Client),
            UriTooLong => (414, "uri-too-long", "DPE", Client),
            HeadTooLarge => (431, "head-too-large", "DPE", Client),
            BadPath => (400, "bad-path", "DPE", Client),
            BodyTooLarge => (413, "body-too-large", "DPE", Client),
            BadBody => (400, "bad-body", "DPE", Client),
            ConnectRefused => (405, "connect-refused", "DPE", Client),
            MaxForwards => (200, "max-forwards", "-", Client),
            NoRoute => (404, "no-route", "NR", Client),
            NoEndpoint => (503, "no-endpoint", "UH", Ours),
            ConnectFailed => (503, "connect-failed", "UF", Upstream),
            ConnectTimeout => (504, "timeout-connect", "UF", Upstream),
            AnswerTimeout => (504, "timeout-answer", "UT", Upstream),
            TotalTimeout => (504, "timeout-total", "UT", Upstream),
            StreamIdle => (504, "timeout-stream-idle", "SI", Upstream),
            UpstreamReset => (502, "upstream-reset", "UC", Upstream),
            BadAnswer => (502, "bad-answer", "UPE", Upstream),
            AnswerTruncated => (502, "answer-truncated", "UC", Upstream),
            HeaderTimeout => (408, "timeout-header", "-", Client),
            BodyTimeout => (408, "timeout-body", "SI", Client),
            ClientStalled => (499, "client-stalled", "SI", Client),
            ClientGone => (499, "client-gone", "DC", Client),
            ConnectionLimit => (503, "limit-connections", "UO", Ours),
            DrainTimeout => (503, "drain-timeout", "-", Ours),
            OutOfDescriptors => (503, "limit-descriptors", "UO", Ours),
            LengthRequired => (411, "length-required", "-", Client),
            TraceRefused => (405, "trace-refused", "DPE", Client),
            BreakerOpen => (503, "breaker-open", "UO", Ours),
            RequestLimit => (503, "limit-requests", "UO", Ours),
            PendingLimit => (503, "limit-pending", "UO", Ours),
            PendingTimeout => (503, "timeout-pending", "UO", Ours),
            TryTimeout => (504, "timeout-try", "UT", Upstream),
            Deadline => (504, "timeout-deadline", "UT", Client),
            Overloaded => (503, "overloaded", "OM", Ours),
            AdmissionControl => (503, "admission-control", "-", Ours),
            RateLimited => (429, "rate-limited", "RL", Client),
            RateLimitUnanswered => (429, "rate-limit-unanswered", "RLSE", Ours),
            UpstreamStatus => (502, "upstream-status", "-", Upstream),
        };
        Facts { status, name, flag, fault }
    }

    /// The status of the answer that we make of it; 499 (nginx's) where nobody hears it.
    pub const fn status(self) -> u16 {
        self.facts().status
    }

    /// As in `x-outrigger-reason`, the access log and the metrics' label `reason`.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Envoy's response flag for it, `-` where Envoy has none.
    pub const fn flag(self) -> &'static str {
        self.facts().flag
    }

    /// Whether it sheds load: another try at once would only add to it.
    pub const fn sheds(self) -> bool {
        matches!(self, Reason::Overloaded | Reason::AdmissionControl)
    }

    /// Who caused it.
    pub const fn fault(self) -> Fault {
        self.facts().fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_reason_once_in_order() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
