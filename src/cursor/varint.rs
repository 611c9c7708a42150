//! Variable-length integers (LEB128), as cursors hold them: seven bits a byte, the lowest first.
//!
//! Invariant: every number has exactly one encoding. A longer one is refused, so that two cursors with different text
//! never mean the same position.

/// Appends `number`.
pub fn write(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Takes a number off the front. `None` where there is none, where it has more than 64 bits, or where it is not in its
/// shortest form.
pub fn read(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
        if byte & 0x80 == 0 {
            let is_shortest = *byte != 0 || shift == 0;
            return is_shortest.then_some(number);
        }
    }
    None
}

/// Appends a signed `number`. Zigzag keeps small ones short, also where they are negative.
pub fn write_signed(to: &mut Vec<u8>, number: i64) {
    write(to, ((number << 1) ^ (number >> 63)) as u64);
}

/// Takes a signed number off the front, under the same rules as [`read`].
pub fn read_signed(from: &mut &[u8]) -> Option<i64> {
    let number = read(from)?;
    Some((number >> 1) as i64 ^ -((number & 1) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_comes_back_and_leaves_the_rest(number: u64, signed: i64, rest: Vec<u8>) {
            let mut bytes = Vec::new();
            write(&mut bytes, number);
            write_signed(&mut bytes, signed);
            bytes.extend_from_slice(&rest);
            let from = &mut &*bytes;
            prop_assert_eq!(read(from), Some(number));
            prop_assert_eq!(read_signed(from), Some(signed));
            prop_assert_eq!(*from, &*rest);
        }

        #[test]
        fn whatever_is_read_is_in_its_only_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let from = &mut &*bytes;
            if let Some(number) = read(from) {
                let mut again = Vec::new();
                write(&mut again, number);
                prop_assert_eq!(&*again, &bytes[..bytes.len() - from.len()]);
            }
        }
    }

    #[test]
    fn overlong_oversized_and_cut_encodings_are_refused() {
        for refused in [&[][..], &[0x80], &[0x80, 0], &[0xff, 0x80, 0], &[0xff; 9], &[0xff; 11]] {
            assert_eq!(read(&mut &*refused), None, "{refused:?}");
        }
        let more_than_64_bits = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(read(&mut &more_than_64_bits[..]), None);
    }
}
