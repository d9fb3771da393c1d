//! What a reload cannot change while the process runs.

use super::model::{Config, Listener};

/// Why `new` cannot take the place of `old` without a restart: one line for each. Empty if it can.
///
/// Routes and clusters, and what holds for new connections of a listener, change with a plan.
/// Threads and sockets are made once, at start.
pub fn reload_obstacles(old: &Config, new: &Config) -> Vec<String> {
    let mut obstacles = Vec::new();
    if old.shards != new.shards {
        obstacles.push("'shards' changed: threads are started once".to_owned());
    }
    if old.admin != new.admin {
        obstacles.push("'admin' changed: its socket is opened once".to_owned());
    }
    let named = |config: &Config, name: &str| -> Option<Listener> {
        config.listeners.iter().find(|listener| *listener.name == *name).cloned()
    };
    for listener in &old.listeners {
        match named(new, &listener.name) {
            None => obstacles.push(format!("listener '{}' is gone", listener.name)),
            Some(other) if other.address != listener.address => obstacles.push(format!(
                "listener '{}' moved from {} to {}",
                listener.name, listener.address, other.address
            )),
            Some(_) => {}
        }
    }
    for listener in &new.listeners {
        if named(old, &listener.name).is_none() {
            obstacles.push(format!("listener '{}' is new", listener.name));
        }
    }
    let order = |config: &Config| -> Vec<String> {
        config.listeners.iter().map(|listener| listener.name.to_string()).collect()
    };
    if obstacles.is_empty() && order(old) != order(new) {
        obstacles.push("the listeners stand in another order".to_owned());
    }
    obstacles
}
