//! A sketch of a set of numbers, from which the difference to another set can be read while it is small: the sums of odd
//! powers of its elements in GF(2^32), which are the syndromes of a BCH code (Dodis, Ostrovsky, Reyzin and Smith, "Fuzzy
//! Extractors", section 6.3: PinSketch).
//!
//! The sketch of a symmetric difference is the XOR of two sketches. From `k` sums, a difference of up to `k - 1` elements
//! is found; the sum that is left over proves it, so that a larger difference is not taken for a small one by more than a
//! chance of 1 in 2^32.

/// The bytes of one sum.
pub const SUM_BYTES: usize = 4;

/// Returns the first `count` odd power sums of `elements`, none of which may be zero.
pub fn sums(elements: impl IntoIterator<Item = u32>, count: usize) -> Vec<u32> {
    let mut sums = vec![0; count];
    for element in elements {
        let square = multiply(element, element);
        let mut power = element;
        for sum in &mut sums {
            *sum ^= power;
            power = multiply(power, square);
        }
    }
    sums
}

/// Returns the elements of a difference by its sums, in no order. `None` where it has too many.
pub fn difference(odd_sums: &[u32]) -> Option<Vec<u32>> {
    let mut syndromes: Vec<u32> = Vec::with_capacity(2 * odd_sums.len());
    for index in 0..2 * odd_sums.len() {
        // S(2i) = S(i)^2; `index` counts from 0, and powers from 1.
        let syndrome = match index % 2 {
            0 => odd_sums[index / 2],
            _ => multiply(syndromes[index / 2], syndromes[index / 2]),
        };
        syndromes.push(syndrome);
    }
    let locator = shortest_register(&syndromes);
    let size = locator.len() - 1;
    if size >= odd_sums.len() || locator[size] == 0 {
        return (size == 0 && odd_sums.iter().all(|sum| *sum == 0)).then(Vec::new);
    }
    // The locator is a product of (1 - e x) over the elements e; read backwards, of (x - e).
    let mut product: Vec<u32> = locator.into_iter().rev().collect();
    make_monic(&mut product);
    let mut roots = Vec::new();
    find_roots(product, &mut roots, 0).then_some(())?;
    roots.sort_unstable();
    roots.dedup();
    (roots.len() == size && sums(roots.iter().copied(), odd_sums.len()) == odd_sums).then_some(roots)
}

fn multiply(left: u32, right: u32) -> u32 {
    let (mut product, wide) = (0_u64, u64::from(left));
    for bit in 0..32 {
        product ^= (wide << bit) & 0_u64.wrapping_sub(u64::from(right >> bit & 1));
    }
    // Twice, since the first turn leaves seven bits too many.
    reduce(reduce(product)) as u32
}

/// Puts x^7 + x^3 + x^2 + 1 in the place of x^32, which are the same in this field.
fn reduce(product: u64) -> u64 {
    let high = product >> 32;
    product & u64::from(u32::MAX) ^ high << 7 ^ high << 3 ^ high << 2 ^ high
}

/// The inverse of a number that is not zero: its power 2^32 - 2.
fn invert(number: u32) -> u32 {
    let (mut inverse, mut square) = (1, number);
    for _ in 1..32 {
        square = multiply(square, square);
        inverse = multiply(inverse, square);
    }
    inverse
}

/// Berlekamp and Massey: the shortest linear feedback register that makes these syndromes, its coefficients from that of
/// x^0 on, which is 1.
fn shortest_register(syndromes: &[u32]) -> Vec<u32> {
    let (mut register, mut earlier) = (vec![1_u32], vec![1_u32]);
    let (mut length, mut gap, mut earlier_discrepancy) = (0, 1, 1);
    for index in 0..syndromes.len() {
        let terms = register.iter().enumerate().take(index + 1);
        let discrepancy = terms.fold(0, |sum, (at, factor)| sum ^ multiply(*factor, syndromes[index - at]));
        if discrepancy == 0 {
            gap += 1;
            continue;
        }
        let before = register.clone();
        let factor = multiply(discrepancy, invert(earlier_discrepancy));
        register.resize(register.len().max(earlier.len() + gap), 0);
        for (at, term) in earlier.iter().enumerate() {
            register[at + gap] ^= multiply(factor, *term);
        }
        if 2 * length <= index {
            (length, earlier, earlier_discrepancy, gap) = (index + 1 - length, before, discrepancy, 1);
        } else {
            gap += 1;
        }
    }
    register.resize(length + 1, 0);
    register
}

/// Polynomials, with coefficients from that of x^0 on; the highest is not zero.
fn trim(polynomial: &mut Vec<u32>) {
    while polynomial.last() == Some(&0) {
        polynomial.pop();
    }
}

fn make_monic(polynomial: &mut [u32]) {
    let Some(factor) = polynomial.last().map(|highest| invert(*highest)) else { return };
    polynomial.iter_mut().for_each(|term| *term = multiply(*term, factor));
}

/// Leaves the remainder of a division by a monic polynomial, and returns the quotient.
fn divide(rest: &mut Vec<u32>, divisor: &[u32]) -> Vec<u32> {
    let mut quotient = vec![0; (rest.len() + 1).saturating_sub(divisor.len())];
    while rest.len() >= divisor.len() {
        let (shift, factor) = (rest.len() - divisor.len(), rest[rest.len() - 1]);
        quotient[shift] = factor;
        for (at, term) in divisor.iter().enumerate() {
            rest[at + shift] ^= multiply(factor, *term);
        }
        trim(rest);
    }
    quotient
}

fn greatest_common_divisor(mut left: Vec<u32>, mut right: Vec<u32>) -> Vec<u32> {
    while !right.is_empty() {
        make_monic(&mut right);
        divide(&mut left, &right);
        std::mem::swap(&mut left, &mut right);
    }
    make_monic(&mut left);
    left
}

/// Returns the trace of `factor * x`, which is 0 or 1 at each number, modulo a polynomial.
fn trace(factor: u32, modulus: &[u32]) -> Vec<u32> {
    let mut power = vec![0, factor];
    divide(&mut power, modulus);
    let mut sum = power.clone();
    for _ in 1..32 {
        let mut square = vec![0; (2 * power.len()).saturating_sub(1)];
        for (at, term) in power.iter().enumerate() {
            square[2 * at] = multiply(*term, *term);
        }
        divide(&mut square, modulus);
        sum.resize(sum.len().max(square.len()), 0);
        sum.iter_mut().zip(&square).for_each(|(term, more)| *term ^= more);
        power = square;
    }
    trim(&mut sum);
    sum
}

/// Collects the roots of a monic polynomial by splitting it along traces (Berlekamp). False where it does not split into
/// different factors of degree 1.
fn find_roots(polynomial: Vec<u32>, roots: &mut Vec<u32>, first_bit: u32) -> bool {
    match polynomial.len() {
        0 => return false,
        1 => return true,
        2 => {
            roots.push(polynomial[0]);
            return true;
        }
        _ => {}
    }
    for bit in first_bit..32 {
        let part = greatest_common_divisor(polynomial.clone(), trace(1 << bit, &polynomial));
        if part.len() > 1 && part.len() < polynomial.len() {
            let mut rest = polynomial;
            let quotient = divide(&mut rest, &part);
            return find_roots(part, roots, bit + 1) && find_roots(quotient, roots, bit + 1);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::BTreeSet;

    #[test]
    fn every_number_but_zero_has_an_inverse() {
        let mut random = StdRng::seed_from_u64(1);
        for number in [1, 2, 0x8d, u32::MAX].into_iter().chain((0..200).map(|_| random.random_range(1..=u32::MAX))) {
            assert_eq!(multiply(number, invert(number)), 1, "{number:x}");
        }
    }

    #[test]
    fn a_small_difference_is_found_exactly_and_a_large_one_is_not_taken_for_a_small() {
        let mut random = StdRng::seed_from_u64(2);
        for round in 0..400 {
            let sums_held = random.random_range(1..=13);
            let before: BTreeSet<u32> =
                (0..random.random_range(0..200)).map(|_| random.random_range(1..=u32::MAX)).collect();
            let mut after = before.clone();
            for _ in 0..random.random_range(0..=sums_held + 2) {
                match before.iter().nth(random.random_range(0..400)) {
                    Some(gone) => drop(after.remove(gone)),
                    None => drop(after.insert(random.random_range(1..=u32::MAX))),
                }
            }
            let (left, right) = (sums(before.iter().copied(), sums_held), sums(after.iter().copied(), sums_held));
            let both: Vec<u32> = left.iter().zip(&right).map(|(one, other)| one ^ other).collect();
            let truth: Vec<u32> = before.symmetric_difference(&after).copied().collect();
            let expected = (truth.len() < sums_held).then_some(truth);
            assert_eq!(difference(&both), expected, "round {round}, {sums_held} sums");
        }
    }
}
