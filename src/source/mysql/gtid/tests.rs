use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
const B: &str = "00000000-0000-0000-0000-000000000007";

fn mysql(text: &str) -> GtidSet {
    GtidSet::parse(Flavor::MySql, text).unwrap()
}

fn mariadb(text: &str) -> GtidSet {
    GtidSet::parse(Flavor::MariaDb, text).unwrap()
}

fn name(source: u128, tag: Option<&str>, number: u64) -> Gtid {
    Gtid::MySql { source, tag: tag.map(Arc::from), number }
}

#[test]
fn what_servers_print_reads_back_in_normal_form() {
    for (text, normal) in [
        ("", String::new()),
        ("\n", String::new()),
        (&format!("{A}:1"), format!("{A}:1")),
        (&format!("{A}:1-5:7:9-12,\n{B}:3"), format!("{B}:3,{A}:1-5:7:9-12")),
        (&format!(" {} : 7 : 1 - 3 : 4 ", A.to_uppercase()), format!("{A}:1-4:7")),
        (&format!("{A}:1-3:5,,{A}:4"), format!("{A}:1-5")),
        (&format!("{A}:1-3:tag:2-5:TAG_2:1:1-2"), format!("{A}:1-3:tag:2-5:tag_2:1-2")),
        (&format!("{A}:b:1,{A}:9,{A}:a:1"), format!("{A}:9:a:1:b:1")),
        (&format!("{A}:1-9223372036854775806"), format!("{A}:1-9223372036854775806")),
    ] {
        let set = mysql(text);
        assert_eq!(set.to_string(), normal, "{text}");
        assert_eq!(mysql(&normal), set);
    }
    assert_eq!(mariadb("1-2-5, 0-1-100\n").to_string(), "0-1-100,1-2-5");
    assert_eq!(mariadb("").to_string(), "");
    assert_eq!(mariadb("4294967295-4294967295-18446744073709551615").interval_count(), 1);
}

#[test]
fn what_is_no_set_is_refused() {
    for text in [
        "x",
        ":",
        A,
        "3e11fa47:1",
        &format!("{A}:"),
        &format!("{A}:0"),
        &format!("{A}:-1"),
        &format!("{A}:1-"),
        &format!("{A}:3-1"),
        &format!("{A}:1-2-3"),
        &format!("{A}:+1"),
        &format!("{A}:9223372036854775807"),
        &format!("{A}:tag"),
        &format!("{A}:1:tag"),
        &format!("{A}:a:b:1"),
        &format!("{A}:1tag:1"),
        &format!("{A}:tä:1"),
        "0-1-5",
        &format!("{A}:{}:1", "t".repeat(33)),
    ] {
        let error = GtidSet::parse(Flavor::MySql, text).unwrap_err();
        assert_eq!(error.text, text);
    }
    for text in [
        "x",
        "0",
        "0-1",
        "0-1-2-3",
        "0-1-",
        "-1-2",
        "0-1-2,0-1-3",
        "0- 1-2",
        "4294967296-1-1",
        "0-4294967296-1",
        "0-1-18446744073709551616",
    ] {
        assert!(GtidSet::parse(Flavor::MariaDb, text).is_err(), "{text}");
    }
    // A long text is not repeated whole, and not cut inside a character.
    let long = "ü".repeat(1000);
    assert_eq!(GtidSet::parse(Flavor::MySql, &long).unwrap_err().text, "ü".repeat(100));
}

#[test]
fn a_tag_makes_another_source() {
    let mut set = mysql(&format!("{A}:1-5"));
    let source = uuid::Uuid::parse_str(A).unwrap().as_u128();
    assert!(set.contains(&name(source, None, 5)));
    assert!(!set.contains(&name(source, Some("tag"), 5)));
    set.add(&name(source, Some("tag"), 5));
    assert_eq!(set.to_string(), format!("{A}:1-5:tag:5"));
    assert_eq!(name(source, Some("tag"), 5).to_string(), format!("{A}:tag:5"));
    assert_eq!(name(source, None, 5).to_string(), format!("{A}:5"));
}

#[test]
fn the_last_of_a_mariadb_domain_is_the_last_that_was_added() {
    let mut set = mariadb("0-1-100");
    set.add(&Gtid::MariaDb { domain: 0, server: 2, number: 40 });
    set.add(&Gtid::MariaDb { domain: 7, server: 2, number: 1 });
    assert_eq!(set.to_string(), "0-2-40,7-2-1");
    assert!(set.contains(&Gtid::MariaDb { domain: 0, server: 1, number: 40 }));
    assert!(!set.contains(&Gtid::MariaDb { domain: 0, server: 1, number: 41 }));
    assert!(!set.contains(&Gtid::MariaDb { domain: 1, server: 1, number: 1 }));
    assert!(mariadb("0-9-39").is_subset_of(&set));
    assert!(!mariadb("0-9-39,1-1-1").is_subset_of(&set));
    set.union_with(&mariadb("0-5-41,7-9-1,8-1-1"));
    assert_eq!(set.to_string(), "0-5-41,7-2-1,8-1-1");
}

#[test]
fn flavors_do_not_mix() {
    assert!(!mysql(&format!("{A}:1")).is_subset_of(&mariadb("0-1-1")));
    assert!(mysql("").is_subset_of(&mariadb("0-1-1")));
    assert!(!mysql("").contains(&Gtid::MariaDb { domain: 0, server: 0, number: 1 }));
    assert!(!mariadb("").contains(&name(7, None, 1)));
}

#[test]
fn a_set_is_encoded_as_the_server_encodes_it() {
    // without tags
    let mut expected = vec![1, 0, 0, 0, 0, 0, 0, 0];
    expected.extend([0; 15]);
    expected.push(7);
    expected.extend([2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([9, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(mysql(&format!("{B}:1-3:9")).encode_for_dump(), expected);
    // with one: every source tells its tag, and the head its form at both ends
    let mut expected = vec![1, 2, 0, 0, 0, 0, 0, 1];
    for tag in [&b"\x00"[..], &b"\x06tag"[..]] {
        expected.extend([0; 15]);
        expected.push(7);
        expected.extend(tag);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(mysql(&format!("{B}:1:tag:1")).encode_for_dump(), expected);
    assert_eq!(mysql("").encode_for_dump(), [0; 8]);
}

/// Few sources, tags and numbers, so that they meet.
fn model() -> impl Strategy<Value = BTreeSet<(u128, Option<&'static str>, u64)>> {
    let tag = prop_oneof![Just(None), Just(Some("a")), Just(Some("b_2"))];
    proptest::collection::btree_set((1_u128..3, tag, 1_u64..20), 0..40)
}

fn set_of(model: &BTreeSet<(u128, Option<&'static str>, u64)>, reversed: bool) -> GtidSet {
    let mut set = GtidSet::empty(Flavor::MySql);
    let mut names: Vec<_> = model.iter().collect();
    if reversed {
        names.reverse();
    }
    for (source, tag, number) in names {
        set.add(&name(*source, *tag, *number));
    }
    set
}

proptest! {
    #[test]
    fn sets_are_what_a_naive_model_is(these in model(), those in model(), reversed: bool) {
        let (set, other) = (set_of(&these, reversed), set_of(&those, !reversed));
        // one normal form, whatever the order of adding
        prop_assert_eq!(&set, &set_of(&these, !reversed));
        prop_assert_eq!(&mysql(&set.to_string()), &set);
        // membership
        for source in 1..3 {
            for tag in [None, Some("a"), Some("b_2")] {
                for number in 1..21 {
                    let expected = these.contains(&(source, tag, number));
                    prop_assert_eq!(set.contains(&name(source, tag, number)), expected);
                }
            }
        }
        // intervals as few as can be
        let ends = these.iter().filter(|(s, t, n)| !these.contains(&(*s, *t, n + 1))).count();
        prop_assert_eq!(set.interval_count(), ends);
        prop_assert_eq!(set.is_empty(), these.is_empty());
        // arithmetic
        prop_assert_eq!(set.is_subset_of(&other), these.is_subset(&those));
        let mut union = set.clone();
        union.union_with(&other);
        prop_assert_eq!(&union, &set_of(&these.union(&those).copied().collect(), reversed));
        prop_assert!(set.is_subset_of(&union) && other.is_subset_of(&union));
    }

    #[test]
    fn any_text_is_a_set_or_an_error(text in "[0-9a-z:,\\- ]{0,60}") {
        for flavor in [Flavor::MySql, Flavor::MariaDb] {
            if let Ok(set) = GtidSet::parse(flavor, &text) {
                prop_assert_eq!(GtidSet::parse(flavor, &set.to_string()), Ok(set));
            }
        }
    }
}
