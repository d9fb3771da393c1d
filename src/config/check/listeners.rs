//! Listeners: addresses of their own, limits that fit together.

use std::collections::HashMap;

use super::Checker;
use crate::config::error::clip;
use crate::config::model::{Encoded, Listener};
use crate::config::values::Size;
use crate::http::head::FIELDS_MAX;
use crate::shard::buffers::HEAD_BYTES_MAX;

/// Less would refuse every real request.
const HEAD_BYTES_MIN: u64 = 256;

impl Checker<'_> {
    pub(super) fn listeners(&mut self) {
        let listeners = &self.config.listeners;
        if listeners.is_empty() {
            self.error(
                "listeners",
                "there is no listener",
                "add one: listeners: [{address: 127.0.0.1:8080}]",
            );
        }
        self.unique(listeners.iter().map(|it| &it.name), "listeners", "listener");
        let mut addresses = HashMap::new();
        for (index, listener) in listeners.iter().enumerate() {
            let address = listener.address.0;
            let path = format!("listeners.{index}");
            if address.port() != 0
                && let Some(first) = addresses.insert(address, index)
            {
                let first = self.called(first);
                self.error(
                    &format!("{path}.address"),
                    format!("{address} is taken by {first}"),
                    "give each listener an address of its own",
                );
            }
            if self.config.admin.address.0 == Some(address) && address.port() != 0 {
                let help = match self.given("admin.address") {
                    true => "give one of them another port",
                    false => "the admin listens there: move it with admin.address",
                };
                self.error(
                    &format!("{path}.address"),
                    format!("{address} is the admin's address"),
                    help,
                );
            }
            self.listener(&path, listener);
        }
        for (index, listener) in listeners.iter().enumerate() {
            let Some(log) = &listener.access_log else { continue };
            let other = listeners[..index].iter().position(|other| {
                other
                    .access_log
                    .as_ref()
                    .is_some_and(|it| it.path == log.path && it.format != log.format)
            });
            if let Some(other) = other {
                let other = self.called(other);
                self.warn(
                    &format!("listeners.{index}.access_log.format"),
                    format!("{other} writes to '{}' in another format", clip(&log.path)),
                    "give each format a file of its own",
                );
            }
        }
    }

    /// How a listener is called in a message.
    fn called(&self, index: usize) -> String {
        match &self.config.listeners[index].name {
            name if name.is_empty() => format!("listener {}", index + 1),
            name => format!("listener '{name}'"),
        }
    }

    fn listener(&mut self, path: &str, listener: &Listener) {
        let Listener { limits, timeouts, forwarded, .. } = listener;
        let fields_max = FIELDS_MAX as u32;
        if !(1..=fields_max).contains(&limits.fields_max) {
            self.error(
                &format!("{path}.limits.fields_max"),
                format!("a head may have 1 to {fields_max} fields"),
                "100 is the default",
            );
        }
        // A head that outgrows an ordinary buffer moves to a large one.
        let most = Size(HEAD_BYTES_MAX as u64);
        if limits.head_bytes_max > most {
            self.error(
                &format!("{path}.limits.head_bytes_max"),
                format!("a head may have at most {most}"),
                "60KiB is the default",
            );
        }
        for (field, value) in
            [("uri_bytes_max", limits.uri_bytes_max), ("head_bytes_max", limits.head_bytes_max)]
        {
            if value.0 < HEAD_BYTES_MIN {
                self.error(
                    &format!("{path}.limits.{field}"),
                    format!("{value} bytes refuse every real request"),
                    format!("at least {}", HEAD_BYTES_MIN),
                );
            }
        }
        if limits.uri_bytes_max > limits.head_bytes_max {
            let field = match self.given(&format!("{path}.limits.uri_bytes_max")) {
                true => "uri_bytes_max",
                false => "head_bytes_max",
            };
            self.error(
                &format!("{path}.limits.{field}"),
                format!(
                    "the target ({}) may be longer than the head that it is part of ({})",
                    limits.uri_bytes_max, limits.head_bytes_max
                ),
                "lower uri_bytes_max, or raise head_bytes_max",
            );
        }
        if limits.connections_max == 0 {
            self.error(
                &format!("{path}.limits.connections_max"),
                "no connections, no requests",
                "at least 1",
            );
        }
        let rate = timeouts.body_bytes_per_second_min;
        if timeouts.body.0.is_zero()
            && self.given(&format!("{path}.timeouts.body_bytes_per_second_min"))
        {
            self.warn(
                &format!("{path}.timeouts.body_bytes_per_second_min"),
                format!("{rate} bytes a second are never asked for: 'body' is 0"),
                "give 'body' a time",
            );
        }
        if rate.0 > u64::from(u32::MAX) {
            self.error(
                &format!("{path}.timeouts.body_bytes_per_second_min"),
                "nobody is that fast",
                "240 is the default",
            );
        }
        let trusted = format!("{path}.forwarded.trusted");
        for (index, cidr) in forwarded.trusted.cidrs.iter().flatten().enumerate() {
            if cidr.0.prefix_len() == 0 {
                self.warn(
                    &format!("{trusted}.cidrs.{index}"),
                    format!("{cidr} believes everybody: any client can claim any address"),
                    "name your proxies' addresses",
                );
            }
        }
        if listener.path.nul == Some(Encoded::Decode) {
            self.error(&format!("{path}.path.nul"), "%00 is never decoded", "write refuse or keep");
        }
    }
}
