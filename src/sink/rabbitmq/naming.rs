//! How a log line or an error names an exchange and a routing key.
//!
//! The routing key is by default the row's key, which may be an e-mail address, and the broker
//! repeats it in some of its texts. So whatever is made from the row's key is printed as the
//! template that it came from. Pure.

use std::sync::Arc;

use super::envelope::Template;
use super::exchanges::{ACCESS_REFUSED, NOT_FOUND};
use crate::message::without_key;

/// Which of the two may be printed as they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Naming {
    /// The exchange's template, where the key is part of it.
    exchange: Option<Arc<str>>,
    /// The routing key's template, where the key is part of it.
    routing_key: Option<Arc<str>>,
}

impl Naming {
    pub(super) fn new(exchange: &Template, routing_key: &Template) -> Self {
        Self { exchange: exchange.keyed(), routing_key: routing_key.keyed() }
    }

    /// The exchange as a line may name it.
    pub(super) fn exchange(&self, exchange: &str, routing_key: &str) -> String {
        match &self.exchange {
            Some(template) => format!("exchange \"{template}\""),
            None if exchange.is_empty() => "the default exchange".to_owned(),
            // A topic may be a template over the key's column too.
            None if self.routing_key.is_some() => {
                format!("exchange \"{}\"", without_key(exchange, routing_key))
            }
            None => format!("exchange \"{exchange}\""),
        }
    }

    /// Exchange and routing key as a line may name them.
    pub(super) fn route(&self, exchange: &str, routing_key: &str) -> String {
        let shown = self.routing_key.as_deref().unwrap_or(routing_key);
        format!("{} with routing key \"{shown}\"", self.exchange(exchange, routing_key))
    }

    /// The broker's own text about a message. It repeats a routing key only where access to a
    /// topic was refused, so nothing is left of that one but its meaning.
    pub(super) fn reply(&self, code: u16, text: &str) -> String {
        match code {
            ACCESS_REFUSED => "ACCESS_REFUSED (403): the user may not write to \
                the exchange, or not with this routing key; see rabbitmqctl list_user_permissions \
                and list_user_topic_permissions"
                .to_owned(),
            NOT_FOUND if self.exchange.is_some() => {
                "NOT_FOUND (404): there is no such exchange".to_owned()
            }
            _ => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(exchange: &str, routing_key: &str) -> Naming {
        let exchange = Template::parse("exchange", exchange).unwrap();
        let routing_key = Template::parse("routing_key", routing_key).unwrap();
        Naming::new(&exchange, &routing_key)
    }

    #[test]
    fn what_is_made_of_the_key_is_printed_as_its_template() {
        let key = "ann@example.com";
        let default = naming("{topic}", "{key}");
        assert_eq!(default.route("orders", key), "exchange \"orders\" with routing key \"{key}\"");
        assert_eq!(default.exchange(&format!("orders.{key}"), key), "exchange \"orders.{key}\"");
        assert_eq!(default.exchange("orders.7", "7"), "exchange \"orders.{key}\"");
        assert_eq!(default.exchange("orders7", "7"), "exchange \"orders7\"");
        let of_key = naming("by.{key}", "all");
        assert_eq!(
            of_key.route(&format!("by.{key}"), "all"),
            "exchange \"by.{key}\" with routing key \"all\""
        );
        let plain = naming("", "{topic}");
        assert_eq!(plain.route("", "orders"), "the default exchange with routing key \"orders\"");
    }

    #[test]
    fn a_refused_topic_is_told_without_the_brokers_words() {
        let text = "ACCESS_REFUSED - write access to topic 'ann@example.com' in exchange 'orders' \
                    in vhost '/' refused for user 'relay'";
        let said = naming("{topic}", "{key}").reply(403, text);
        assert!(!said.contains("ann@") && said.contains("topic_permissions"), "{said}");
        let missing = "NOT_FOUND - no exchange 'ann@example.com' in vhost '/'";
        assert!(!naming("{key}", "").reply(404, missing).contains("ann@"));
        assert_eq!(naming("{topic}", "").reply(404, "no exchange 'x'"), "no exchange 'x'");
    }
}
