//! ISO 4217: the codes of list one (current currencies, funds and metals), as a set of bits.

/// List one of <https://www.six-group.com/en/products-services/financial-information/data-standards.html>.
const CODES: &str = "\
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD \
    CDF CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL \
    GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW \
    KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD \
    NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP \
    SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS \
    VED VES VND VUV WST XAD XAF XAG XAU XBA XBB XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XTS XUA XXX YER \
    ZAR ZMW ZWG";

/// One bit for each of the 26 * 26 * 26 codes there could be.
const SET: [u64; 275] = {
    let mut set = [0; 275];
    let text = CODES.as_bytes();
    let mut start = 0;
    while start < text.len() {
        let Some(index) = index(&[text[start], text[start + 1], text[start + 2]]) else {
            panic!("a code is three capital letters");
        };
        set[index / 64] |= 1 << (index % 64);
        start += 4;
    }
    set
};

const fn index(code: &[u8; 3]) -> Option<usize> {
    let mut index = 0;
    let mut place = 0;
    while place < 3 {
        let letter = code[place].wrapping_sub(b'A');
        if letter >= 26 {
            return None;
        }
        index = index * 26 + letter as usize;
        place += 1;
    }
    Some(index)
}

/// Whether ISO 4217 lists this code.
#[inline]
pub(crate) fn is_known(code: &str) -> bool {
    let Some(index) = code.as_bytes().try_into().ok().and_then(index) else { return false };
    SET[index / 64] >> (index % 64) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_has_the_listed_codes_and_no_other() {
        let mut known = 0;
        for first in 'A'..='Z' {
            for second in 'A'..='Z' {
                for third in 'A'..='Z' {
                    let code: String = [first, second, third].iter().collect();
                    assert_eq!(is_known(&code), CODES.split(' ').any(|listed| listed == code), "{code}");
                    known += usize::from(is_known(&code));
                }
            }
        }
        assert_eq!(known, CODES.split(' ').count());
    }

    #[test]
    fn other_text_is_no_code() {
        for code in ["", "EU", "EURO", "eur", "Eur", "EU ", " EUR", "€", "E\u{0}R", "ÉU", "XYZ", "DEM", "HRK"]
        {
            assert!(!is_known(code), "{code}");
        }
    }
}
