//! Tokens for tests and demo. Issuer `https://issuer.lab`, RS256, key `lab`; the private keys were thrown away, and
//! the tokens end in the year 2100.

/// The issuer's public key.
pub const JWKS: &str = include_str!("jwt/jwks.json").trim_ascii_end();
/// Subject `alice`, groups `admins` and `readers`.
pub const ALICE: &str = include_str!("jwt/alice.jwt").trim_ascii_end();
/// Subject `bob`, group `readers`.
pub const BOB: &str = include_str!("jwt/bob.jwt").trim_ascii_end();
/// Of alice, and over since 2023.
pub const EXPIRED: &str = include_str!("jwt/expired.jwt").trim_ascii_end();
/// Says the same as that of alice, signed with another key.
pub const FORGED: &str = include_str!("jwt/forged.jwt").trim_ascii_end();
/// The issuer's name.
pub const ISSUER: &str = "https://issuer.lab";
