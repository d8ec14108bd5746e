//! Arithmetic in GF(2^8) = GF(2)[x] / (x^8 + x^4 + x^3 + x^2 + 1): addition is XOR, a byte's bit i is the coefficient of x^i.

/// The field's polynomial, 0x11D, of which 2 (that is, x) generates every non-zero element.
pub const POLYNOMIAL: u16 = 0x11D;

/// The product of two elements, bit by bit; tables are made from it.
const fn multiply_slowly(a: u8, b: u8) -> u8 {
    let mut a = a as u16;
    let mut b = b;
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a <<= 1;
        if a & 0x100 != 0 {
            a ^= POLYNOMIAL;
        }
        b >>= 1;
    }
    product as u8
}

/// `PRODUCTS[a][b]` is a·b.
pub(crate) static PRODUCTS: [[u8; 256]; 256] = {
    let mut products = [[0; 256]; 256];
    let mut a = 1;
    while a < 256 {
        // Products of powers of two by multiplication, the others by distributivity: cheap for the compiler.
        let mut b = 1;
        while b < 256 {
            let top = 1 << (7 - (b as u8).leading_zeros());
            products[a][b] =
                if top == b { multiply_slowly(a as u8, b as u8) } else { products[a][top] ^ products[a][b ^ top] };
            b += 1;
        }
        a += 1;
    }
    products
};

/// The product of two elements.
#[inline]
pub fn multiply(a: u8, b: u8) -> u8 {
    PRODUCTS[usize::from(a)][usize::from(b)]
}

/// The element whose product with `a` is 1; 0 for 0, which has none.
pub const fn invert(a: u8) -> u8 {
    // a^254: the group of non-zero elements has 255 members.
    let mut result = 1;
    let mut square = a;
    let mut exponent = 254;
    while exponent > 0 {
        if exponent & 1 != 0 {
            result = multiply_slowly(result, square);
        }
        square = multiply_slowly(square, square);
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_holds_the_products() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(multiply(a, b), multiply_slowly(a, b), "{a}·{b}");
            }
        }
    }

    #[test]
    fn every_element_but_zero_has_an_inverse() {
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
        }
        assert_eq!(invert(0), 0);
    }

    #[test]
    fn two_generates_the_field() {
        let mut power = 1;
        for exponent in 1..=255 {
            power = multiply(power, 2);
            assert_eq!(power == 1, exponent == 255, "2^{exponent}");
        }
    }
}
