//! The arithmetic of GTID sets beside the server's own: `GTID_SUBSET` and `GTID_SUBTRACT` of MySQL.
//! MariaDB has no such functions; its sets are looked at by unit tests.

use proptest::prelude::*;
use walpost::source::mysql::{Flavor, Gtid, GtidSet};

use crate::support::mysql::{Client, MySql, Version, literal};

const SOURCES: [&str; 3] = [
    "00000000-0000-0000-0000-000000000007",
    "3e11fa47-71ca-11e1-9e33-c80aa9429562",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
];
const TAGS: [&str; 4] = ["", "", ":a", ":tag_2"];

/// One source's part of a set, with numbers that are few enough to meet, and the greatest.
fn part() -> impl Strategy<Value = String> {
    let numbers = prop_oneof![
        9 => (1u64..40, 0u64..6).prop_map(|(first, more)| (first, first + more)),
        1 => (0u64..3).prop_map(|less| (i64::MAX as u64 - 1 - less, i64::MAX as u64 - 1)),
    ];
    let interval = numbers.prop_map(|(first, last)| match first == last {
        true => format!(":{first}"),
        false => format!(":{first}-{last}"),
    });
    let intervals = prop::collection::vec(interval, 1..6);
    (prop::sample::select(&SOURCES[..]), prop::sample::select(&TAGS[..]), intervals)
        .prop_map(|(source, tag, intervals)| format!("{source}{tag}{}", intervals.concat()))
}

/// Sources may stand in it twice, and intervals in any order.
fn set() -> impl Strategy<Value = String> {
    prop::collection::vec(part(), 0..5).prop_map(|parts| parts.join(","))
}

fn gtid() -> impl Strategy<Value = (Gtid, String)> {
    (prop::sample::select(&SOURCES[..]), prop::sample::select(&TAGS[..]), 1u64..45).prop_map(
        |(source, tag, number)| {
            let gtid = Gtid::MySql {
                source: uuid::Uuid::parse_str(source).unwrap().as_u128(),
                tag: tag.strip_prefix(':').map(Into::into),
                number,
            };
            let text = format!("{source}{tag}:{number}");
            (gtid, text)
        },
    )
}

fn parse(text: &str) -> GtidSet {
    GtidSet::parse(Flavor::MySql, text).unwrap()
}

/// The server breaks lines after commas.
fn ask(client: &Client, expression: &str) -> String {
    client.value(&format!("SELECT {expression}")).unwrap().replace('\n', "")
}

#[test]
fn sets_are_what_the_server_makes_of_them() {
    if Version::MySql97.is_left_out() {
        return;
    }
    let client = MySql::shared(Version::MySql97).client();
    proptest!(|(a in set(), b in set(), (gtid, name) in gtid())| {
        let (ours, other) = (parse(&a), parse(&b));
        let [a, b, name] = [&a, &b, &name].map(|text| literal(text));
        // The normal form: of a set, of two together, and of one with a transaction more.
        prop_assert_eq!(ours.to_string(), ask(&client, &format!("GTID_SUBTRACT({a}, '')")));
        let mut both = ours.clone();
        both.union_with(&other);
        let joined = format!("GTID_SUBTRACT(CONCAT({a}, ',', {b}), '')");
        prop_assert_eq!(both.to_string(), ask(&client, &joined));
        let mut more = ours.clone();
        more.add(&gtid);
        let joined = format!("GTID_SUBTRACT(CONCAT({a}, ',', {name}), '')");
        prop_assert_eq!(more.to_string(), ask(&client, &joined));
        more.raise(&gtid);
        prop_assert_eq!(more.to_string(), ask(&client, &joined));
        // What is in what.
        let yes = |is: bool| if is { "1" } else { "0" };
        let subset = ask(&client, &format!("GTID_SUBSET({a}, {b})"));
        prop_assert_eq!(yes(ours.is_subset_of(&other)), subset);
        let contained = ask(&client, &format!("GTID_SUBSET({name}, {a})"));
        prop_assert_eq!(yes(ours.contains(&gtid)), contained);
        // What the server takes away is no more and no less than what was there.
        let rest = parse(&ask(&client, &format!("GTID_SUBTRACT({a}, {b})")));
        prop_assert!(rest.is_subset_of(&ours));
        let mut again = rest.clone();
        again.union_with(&other);
        prop_assert_eq!(again, both);
        prop_assert_eq!(rest.is_empty(), ours.is_subset_of(&other));
    });
}
