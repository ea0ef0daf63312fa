//! Interpreters of languages, sqlite3 and openssl: much code, many indirect branches.

use crate::case::Case;

pub fn cases() -> Vec<Case> {
    let sql = include_str!("guests/script.sql");
    vec![
        Case::new("perl script.pl text"),
        Case::new("perl -ne")
            .arg("print if /(\\w)\\1.*(?:stone|iron)$/i")
            .arg("text")
            .named("perl matches"),
        Case::new("perl -e").arg("die 'as told'").named("perl dies"),
        Case::new("python3 -c pass").heavy(),
        Case::new("python3 -I script.py text").heavy(),
        Case::new("python3 -c")
            .arg("import sys; sys.exit(len(sys.argv))")
            .arg("x")
            .heavy()
            .named("python3 exits"),
        Case::new("python3 -c").arg("1/0").heavy().named("python3 raises"),
        Case::new("lua5.4 script.lua"),
        Case::new("lua5.4 -e").arg("error('as told')").named("lua5.4 fails"),
        Case::new("sqlite3 :memory:").stdin(sql).named("sqlite3 in memory"),
        Case::new("sqlite3 base.db").stdin(sql).named("sqlite3 in a file"),
        Case::new("sqlite3 :memory:")
            .arg("select no_such_function(1)")
            .named("sqlite3 errs"),
        Case::new("openssl version").heavy(),
        Case::new("openssl dgst -sha256 text binary").heavy(),
        Case::new("openssl dgst -sha3-512 text").heavy(),
        Case::new("openssl dgst -md5 -hmac key binary").heavy(),
        Case::new("openssl enc -aes-256-cbc -pbkdf2 -S 0011223344556677 -pass pass:x -in binary")
            .heavy(),
        Case::new("openssl enc -chacha20 -K 00 -iv 00 -in text")
            .heavy(),
        Case::new("openssl enc -aes-128-ctr -K 11 -iv 22 -in binary -out sealed")
            .heavy(),
        Case::new("openssl prime -hex FFFFFFFFFFFFFFC5").heavy(),
        Case::new("openssl asn1parse -genstr UTF8:hello").heavy(),
        Case::new("openssl kdf -keylen 24 -kdfopt digest:SHA2-256 -kdfopt pass:x -kdfopt salt:salty-salt-salty -kdfopt iter:3000 PBKDF2")
            .heavy()
            .named("openssl kdf"),
        Case::new("bc -l")
            .stdin("scale=60; 4*a(1); 2^500; sqrt(2)\n")
            .named("bc"),
    ]
}
