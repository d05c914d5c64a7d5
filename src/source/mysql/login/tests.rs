use aws_lc_rs::rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use proptest::prelude::*;

use super::*;

/// As MySQL 9.7.4 greets.
fn greeting(capabilities: CapabilityFlags) -> Vec<u8> {
    let [a, b, c, d] = capabilities.bits().to_le_bytes();
    let mut payload = b"\x0a9.7.4-2\0\x08\0\0\0abcdefgh\0".to_vec();
    payload.extend_from_slice(&[a, b, 255, 2, 0, c, d, 21]);
    payload.extend_from_slice(&[0; 10]);
    payload.extend_from_slice(b"ijklmnopqrst\0caching_sha2_password\0");
    payload
}

#[test]
fn a_greeting_is_read_whole_or_not_at_all() {
    let whole = greeting(CapabilityFlags::all());
    let handshake = Handshake::parse(&whole).unwrap();
    assert_eq!(handshake.greeting, Greeting { version: "9.7.4-2".into(), session: 8 });
    assert_eq!(handshake.nonce, b"abcdefghijklmnopqrst");
    assert_eq!(handshake.plugin, "caching_sha2_password");
    assert!(handshake.offers_tls());
    let body_end = whole.len() - b"caching_sha2_password\0".len();
    for end in 0..body_end {
        assert!(Handshake::parse(&whole[..end]).is_err(), "{end} bytes");
    }
    // Some servers forget the zero byte after the plugin's name.
    assert_eq!(Handshake::parse(&whole[..whole.len() - 1]).unwrap(), handshake);
}

#[test]
fn servers_of_another_age_are_refused_by_name() {
    for missing in [
        CapabilityFlags::CLIENT_PROTOCOL_41,
        CapabilityFlags::CLIENT_SECURE_CONNECTION,
        CapabilityFlags::CLIENT_PLUGIN_AUTH,
    ] {
        let old = greeting(CapabilityFlags::all() - missing);
        assert!(matches!(Handshake::parse(&old), Err(LoginError::TooOld(_))), "{missing:?}");
    }
    assert!(matches!(Handshake::parse(b"\x093.2"), Err(LoginError::TooOld(_))));
}

#[test]
fn nothing_is_asked_that_the_server_has_not() {
    let few = CapabilityFlags::CLIENT_PROTOCOL_41
        | CapabilityFlags::CLIENT_SECURE_CONNECTION
        | CapabilityFlags::CLIENT_PLUGIN_AUTH;
    let handshake = Handshake::parse(&greeting(few)).unwrap();
    let wanted = handshake.wanted(Some("shop"), false);
    assert_eq!(wanted, few | CapabilityFlags::CLIENT_LONG_PASSWORD);
    let all = Handshake::parse(&greeting(CapabilityFlags::all())).unwrap();
    // Files of ours, several statements and compression are never offered.
    for dangerous in [
        CapabilityFlags::CLIENT_LOCAL_FILES,
        CapabilityFlags::CLIENT_MULTI_STATEMENTS,
        CapabilityFlags::CLIENT_COMPRESS,
        CapabilityFlags::CLIENT_DEPRECATE_EOF,
    ] {
        assert!(!all.wanted(Some("shop"), true).intersects(dangerous));
    }
    assert_eq!(all.head(None, true).len(), 32);
}

#[test]
fn a_password_goes_in_clear_only_where_nobody_reads_along() {
    let nonce = b"abcdefghijklmnopqrst";
    let login = |is_private, may_be_clear| Login {
        user: "u",
        password: None,
        database: None,
        tls: false,
        is_private,
        may_be_clear,
        may_use_key: false,
    };
    assert_eq!(Plugin::Clear.proof(b"secret", nonce, &login(true, true)).unwrap(), b"secret\0");
    let refused = Plugin::Clear.proof(b"secret", nonce, &login(false, true));
    assert!(matches!(refused, Err(LoginError::PlainText)));
    let refused = Plugin::Clear.proof(b"secret", nonce, &login(true, false));
    assert!(matches!(refused, Err(LoginError::Unchecked)));
    let plain = login(false, false);
    for plugin in [Plugin::CachingSha2, Plugin::Native, Plugin::Ed25519] {
        assert!(plugin.proof(b"secret", &nonce[..19], &plain).is_err(), "a short nonce");
    }
    for plugin in [Plugin::CachingSha2, Plugin::Native] {
        assert!(plugin.proof(b"", nonce, &plain).unwrap().is_empty());
    }
}

#[test]
fn the_holder_of_the_key_and_nobody_else_reads_an_encrypted_password() {
    let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let public = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(
        &key.public_key(),
    )
    .unwrap();
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    pem.push_str(&base64(public.as_ref()));
    pem.push_str("\n-----END PUBLIC KEY-----\n");
    let nonce = b"abcdefghijklmnopqrst";
    let password = b"a password that is longer than the nonce";
    let encrypted = plugin::encrypt(password, nonce, pem.as_bytes()).unwrap();
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let mut plain = vec![0; key.min_output_size()];
    let plain = key.decrypt(&OAEP_SHA1_MGF1SHA1, &encrypted, &mut plain, None).unwrap();
    let opened: Vec<u8> = plain.iter().zip(nonce.iter().cycle()).map(|(a, b)| a ^ b).collect();
    assert_eq!(opened, [&password[..], b"\0"].concat());

    for wrong in [&b""[..], b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        assert!(matches!(plugin::encrypt(b"x", nonce, wrong), Err(LoginError::ServerKey)));
    }
    let too_long = plugin::encrypt(&[b'x'; 300], nonce, pem.as_bytes());
    assert!(matches!(too_long, Err(LoginError::ServerKey)));
    assert!(plugin::encrypt(b"x", b"", pem.as_bytes()).is_err());
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|index| u32::from(*chunk.get(index).unwrap_or(&0)));
        let bits = a << 16 | b << 8 | c;
        for (index, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let letter = ALPHABET[(bits >> shift & 63) as usize];
            text.push(if index <= chunk.len() { letter.into() } else { '=' });
        }
    }
    text
}

#[test]
fn a_switch_names_a_plugin_that_is_built_in() {
    let (plugin, nonce) = switched(b"\xfeclient_ed25519\0abc\0").unwrap();
    assert_eq!((plugin, nonce.as_slice()), (Plugin::Ed25519, &b"abc"[..]));
    for (payload, name) in [
        (&b"\xfe"[..], "mysql_old_password"),
        (b"\xfeparsec\0x\0", "parsec"),
        (b"\xfeauth_gssapi_client", "auth_gssapi_client"),
    ] {
        let Err(LoginError::Unsupported(found)) = switched(payload) else { panic!("{name}") };
        assert_eq!(found, name);
    }
}

proptest! {
    #[test]
    fn no_greeting_makes_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120),
        at in 0usize..120,
        to: u8,
    ) {
        drop(Handshake::parse(&bytes));
        drop(switched(&bytes));
        bytes = greeting(CapabilityFlags::all());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        drop(Handshake::parse(&bytes));
    }
}
