#!/usr/bin/env bash
# mysql_common 0.37.3 (the packets of mysql_async 0.37.1): MariaDB's ed25519 sends 32 random bytes
# to be signed, without a terminator. `AuthSwitchRequest::plugin_data` takes a zero at their end for
# one and cuts it off, so 31 bytes are signed, and the server answers "Access denied" (1045) to the
# right password: one login of 256. Expected: all 32 bytes.
#
# Seen, by this script:
#   32 bytes sent, 31 handed to the plugin
#   the signature is another one
# Seen with MariaDB 10.11 of Debian 12: the 496th of a row of logins with one right password was
# refused.
#
# Needs Cargo. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "nonce"
version = "0.1.0"
edition = "2021"
[dependencies]
mysql_common = { version = "=0.37.3", default-features = false, features = ["client_ed25519"] }
flate2 = { version = "1", features = ["rust_backend"] }
TOML
cat >src/main.rs <<'RUST'
use mysql_common::io::ParseBuf;
use mysql_common::packets::AuthSwitchRequest;

fn main() {
    // As the server sends it: 0xFE, the plugin's name, its 32 bytes.
    let mut nonce = [7; 32];
    nonce[31] = 0;
    let packet = [&b"\xFEclient_ed25519\0"[..], &nonce].concat();
    let request: AuthSwitchRequest = ParseBuf(&packet).parse(()).expect("a valid packet");
    let taken = request.plugin_data();
    println!("{} bytes sent, {} handed to the plugin", nonce.len(), taken.len());
    let sign = |nonce: &[u8]| format!("{:?}", request.auth_plugin().gen_data(Some("right"), nonce));
    let is_other = sign(taken) != sign(&nonce);
    println!("the signature is {} one", if is_other { "another" } else { "the same" });
    std::process::exit(i32::from(!(taken.len() == 31 && is_other)));
}
RUST
cargo run --quiet
