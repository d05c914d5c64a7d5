//! What the documentation says of keys, defaults and files, against the real binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::process::scratch;

const SOURCE: &str = "postgres://walpost@localhost/shop";

/// A URL of each kind of database, and the heading of the other kind's keys.
const SOURCES: [(&str, &str); 2] =
    [(SOURCE, "MySQL and MariaDB"), ("mysql://walpost@localhost/shop", "PostgreSQL")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// `walpost config` in an empty folder, without variables of whoever runs the tests.
fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walpost"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WALPOST_") {
            command.env_remove(name);
        }
    }
    command.current_dir(scratch("docs")).arg("config").args(arguments);
    command.envs(variables.iter().copied()).output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Rows of the reference's tables: key, default (`None` is –), variable. Without those that stand
/// under the heading `except`.
fn reference(except: &str) -> Vec<(String, Option<String>, String)> {
    let text = read("docs/src/configuration.md");
    let (mut heading, mut rows) = ("", Vec::new());
    for line in text.lines() {
        if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim();
        } else if let Some(row) = line.strip_prefix("| `").filter(|_| heading != except) {
            let cells: Vec<&str> =
                row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            let default = (cells[1] != "–").then(|| cells[1].to_owned());
            rows.push((cells[0].to_owned(), default, cells[2].to_owned()));
        }
    }
    rows
}

/// Dotted keys and values that `walpost config` prints.
fn effective(text: &str) -> Vec<(String, String)> {
    fn flatten(prefix: &str, table: &toml::Table, flat: &mut Vec<(String, String)>) {
        for (name, value) in table {
            match value {
                toml::Value::Table(inner) => flatten(&format!("{prefix}{name}."), inner, flat),
                toml::Value::String(text) => flat.push((format!("{prefix}{name}"), text.clone())),
                other => flat.push((format!("{prefix}{name}"), other.to_string())),
            }
        }
    }
    let mut flat = Vec::new();
    flatten("", &toml::from_str(text).unwrap(), &mut flat);
    flat
}

fn book() -> Vec<PathBuf> {
    let mut files = vec![root().join("README.md")];
    for folder in ["docs/src", "docs/src/sinks"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files
}

#[test]
fn every_default_of_the_reference_is_the_one_that_walpost_has() {
    for (source, other) in SOURCES {
        // Given what walpost prints when only what it must have is set
        let urls = [("WALPOST_SOURCE_URL", source), ("WALPOST_SINK_URL", "stdout://")];
        let mut printed = effective(&printed(&config(&[], &urls)));

        // Then each default of the reference is there, and nothing else
        let mut listed: Vec<(String, String)> = reference(other)
            .into_iter()
            .filter_map(|(key, default, _)| Some((key, default?)))
            .chain([("source.url".into(), source.into()), ("sink.url".into(), "stdout://".into())])
            .collect();
        listed.sort();
        printed.sort();
        assert_eq!(listed, printed);
    }
}

#[test]
fn every_key_of_the_reference_can_be_set_by_flag_and_by_its_variable() {
    for (source, other) in SOURCES {
        let reference = reference(other);
        assert!(reference.len() > 30, "the tables are found: {reference:?}");
        for (key, default, variable) in reference {
            // Given a value that this key takes
            let value = default.unwrap_or_else(|| match key.as_str() {
                "source.url" => source.into(),
                "sink.url" => "stdout://".into(),
                "source.password" => "hunter2".into(),
                "source.server_id" => "4711".into(),
                "source.memory_file" => "/tmp/relay.memory".into(),
                _ => "some_name".into(),
            });
            let urls = [("WALPOST_SOURCE_URL", source), ("WALPOST_SINK_URL", "stdout://")];
            let others: Vec<_> = urls.into_iter().filter(|(name, _)| *name != variable).collect();

            // When it is set by either way, then walpost takes it and says where it comes from
            let setting = format!("{key}={value}");
            let by_flag = printed(&config(&["--set", &setting], &others));
            let by_variable =
                printed(&config(&[], &[&others[..], &[(&variable, &value)]].concat()));
            assert!(by_flag.contains(&format!("# --set {key}\n")), "{key}:\n{by_flag}");
            assert!(by_variable.contains(&format!("# {variable}\n")), "{variable}:\n{by_variable}");
        }
    }
}

#[test]
fn every_configuration_file_in_the_documentation_is_taken() {
    let mut blocks = vec![read("docs/src/walpost.toml")];
    for file in book() {
        let text = std::fs::read_to_string(&file).unwrap();
        let parts = text.split("```toml\n").skip(1);
        blocks.extend(parts.map(|part| part.split("```").next().unwrap().to_owned()));
    }
    blocks.retain(|block| !block.contains("{{#include"));
    assert!(blocks.len() >= 3, "the blocks are found");
    for block in blocks {
        // Given the block as the user's file
        let folder = scratch("docs-file");
        let file = folder.join("walpost.toml");
        std::fs::write(&file, &block).unwrap();
        let mut variables = vec![];
        if !block.contains("[source]") {
            variables = vec![("WALPOST_SOURCE_URL", SOURCE), ("WALPOST_SINK_URL", "stdout://")];
        }

        // When walpost reads it, then it takes each key
        let output = config(&["--config", file.to_str().unwrap()], &variables);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{problem} in:\n{block}");
    }
}

#[test]
fn every_option_of_a_sink_that_the_documentation_lists_is_known_to_it() {
    for (page, url) in
        [("kafka", "kafka://localhost"), ("rabbitmq", "amqp://localhost"), ("nats", "nats://h")]
    {
        let text = read(&format!("docs/src/sinks/{page}.md"));
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
        for row in rows {
            let names = row.split('|').next().unwrap();
            for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
                // Given an option with a value that no option takes
                let file = scratch("docs-sink").join("walpost.toml");
                let table = format!("[sink]\nurl = \"{url}\"\n{name} = [[]]\n");
                std::fs::write(&file, table).unwrap();

                // When walpost reads it
                let arguments = ["--config", file.to_str().unwrap(), "--source", SOURCE];
                let output = config(&arguments, &[]);

                // Then it is the value that it refuses, not the name
                let problem = String::from_utf8_lossy(&output.stderr);
                assert!(!output.status.success(), "{page} {name}");
                assert!(!problem.contains("unknown field"), "{page} {name}: {problem}");
            }
        }
    }
}

#[test]
fn every_page_of_the_book_is_in_its_summary_and_every_link_leads_to_a_page() {
    let summary = read("docs/src/SUMMARY.md");
    for file in book() {
        let folder = file.parent().unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let path = link.split('#').next().unwrap();
            if !path.contains("://") && !path.is_empty() {
                assert!(folder.join(path).exists(), "{}: {link}", file.display());
            }
        }
        let page = file.strip_prefix(root().join("docs/src"));
        if let Ok(page) = page.map(Path::display).map(|page| page.to_string()) {
            assert!(page == "SUMMARY.md" || summary.contains(&format!("({page})")), "{page}");
        }
    }
}

/// All text of the sources, with strings that go over several lines put together.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(path).unwrap();
            let mut lines = source.split("\\\n");
            text.push_str(lines.next().unwrap());
            lines.for_each(|line| text.push_str(line.trim_start()));
        }
    }
}

#[test]
fn each_message_of_the_page_of_errors_is_one_that_walpost_has() {
    let mut text = String::new();
    sources(&root().join("src"), &mut text);
    let page = read("docs/src/errors.md");
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut messages = 0;
    for row in rows {
        let says = row.trim_end_matches('|').rsplit_once(" | ").unwrap().1;
        for message in says.split('`').skip(1).step_by(2) {
            assert!(text.contains(message), "no source says {message:?}");
            messages += 1;
        }
    }
    assert!(messages > 50, "{messages} messages");
}
