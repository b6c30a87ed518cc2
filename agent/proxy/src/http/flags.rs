//! Envoy's response flags (H-16) of one request.

/// Why a request did not go as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, clippy::upper_case_acronyms, reason = "each variant is the flag of the same name")]
pub(crate) enum Reason {
    UH,
    UF,
    UO,
    NR,
    NC,
    UT,
    UC,
    UR,
    DC,
    LR,
    UAEX,
    IH,
    DPE,
    UPE,
    DENY,
}

/// The flags of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// A fault delayed it (`DI`).
    pub(crate) delayed: bool,
    /// A fault answered it (`FI`).
    pub(crate) aborted: bool,
    /// All retries were used up (`URX`).
    pub(crate) exhausted: bool,
    /// Everything else.
    pub(crate) reason: Option<Reason>,
}

/// The text of a reason together with what may come before it.
macro_rules! combined {
    ($flags:expr, $name:literal) => {
        match ($flags.delayed, $flags.exhausted) {
            (false, false) => $name,
            (true, false) => concat!("DI,", $name),
            (false, true) => concat!("URX,", $name),
            (true, true) => concat!("DI,URX,", $name),
        }
    };
}

impl Flags {
    /// The text of log and metrics; `-` for none.
    pub(crate) fn text(self) -> &'static str {
        if self.aborted {
            return if self.delayed { "DI,FI" } else { "FI" };
        }
        let Some(reason) = self.reason else {
            return match (self.delayed, self.exhausted) {
                (false, false) => "-",
                (true, false) => "DI",
                (false, true) => "URX",
                (true, true) => "DI,URX",
            };
        };
        match reason {
            Reason::UH => combined!(self, "UH"),
            Reason::UF => combined!(self, "UF"),
            Reason::UO => combined!(self, "UO"),
            Reason::NR => combined!(self, "NR"),
            Reason::NC => combined!(self, "NC"),
            Reason::UT => combined!(self, "UT"),
            Reason::UC => combined!(self, "UC"),
            Reason::UR => combined!(self, "UR"),
            Reason::DC => combined!(self, "DC"),
            Reason::LR => combined!(self, "LR"),
            Reason::UAEX => combined!(self, "UAEX"),
            Reason::IH => combined!(self, "IH"),
            Reason::DPE => combined!(self, "DPE"),
            Reason::UPE => combined!(self, "UPE"),
            Reason::DENY => combined!(self, "DENY"),
        }
    }

    /// A flag as `core` writes it.
    pub(crate) fn reason_of(text: &str) -> Option<Reason> {
        Some(match text {
            "UH" => Reason::UH,
            "UF" => Reason::UF,
            "UO" => Reason::UO,
            "NR" => Reason::NR,
            "NC" => Reason::NC,
            "UT" => Reason::UT,
            "UC" => Reason::UC,
            "UR" => Reason::UR,
            "DC" => Reason::DC,
            "LR" => Reason::LR,
            "UAEX" => Reason::UAEX,
            "IH" => Reason::IH,
            "DPE" => Reason::DPE,
            "UPE" => Reason::UPE,
            "DENY" => Reason::DENY,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_combined_as_envoy_writes_them() {
        let cases = [
            (Flags::default(), "-"),
            (Flags { reason: Some(Reason::UF), exhausted: true, ..Flags::default() }, "URX,UF"),
            (Flags { delayed: true, aborted: true, ..Flags::default() }, "DI,FI"),
            (Flags { exhausted: true, ..Flags::default() }, "URX"),
            (Flags { delayed: true, reason: Some(Reason::UT), ..Flags::default() }, "DI,UT"),
        ];
        for (flags, text) in cases {
            assert_eq!(flags.text(), text);
        }
        assert_eq!(Flags::reason_of("NC"), Some(Reason::NC));
        assert_eq!(Flags::reason_of("-"), None);
    }
}
