//! ClickHouse's compressed blocks, as `decompress=1` sends them.
//!
//! A block is a 16-byte checksum (CityHash128 of version 1.0.2 over all that follows), a method byte,
//! the compressed size with these nine header bytes, the raw size, and the data. Nothing is given out
//! of a body of which one block is damaged or cut short.

use crate::embedded::libchdb::Exception;

const CHECKSUM_BYTES: usize = 16;
const HEADER_BYTES: usize = 9;
const LZ4: u8 = 0x82;
const ZSTD: u8 = 0x90;
const NONE: u8 = 0x02;
/// ClickHouse's own bound for a block.
const MAX_BLOCK_BYTES: usize = 1 << 30;

/// Unpacks every block of `body`; refuses more than `limit` bytes in all.
pub(super) fn decompress(mut body: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, Exception> {
    let mut blocks = Vec::new();
    let mut total = 0_usize;
    while !body.is_empty() {
        let (block, rest) = decompress_block(body, limit - total)?;
        total += block.len();
        blocks.push(block);
        body = rest;
    }
    Ok(blocks)
}

fn decompress_block(body: &[u8], limit: usize) -> Result<(Vec<u8>, &[u8]), Exception> {
    let cut_short = || cannot_decompress("the last compressed block is cut short");
    let (checksum, rest) = body.split_first_chunk::<CHECKSUM_BYTES>().ok_or_else(cut_short)?;
    let header = rest.first_chunk::<HEADER_BYTES>().ok_or_else(cut_short)?;
    let &[method, c0, c1, c2, c3, r0, r1, r2, r3] = header;
    let compressed_bytes = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
    let raw_bytes = u32::from_le_bytes([r0, r1, r2, r3]) as usize;
    if !(HEADER_BYTES..=MAX_BLOCK_BYTES).contains(&compressed_bytes) || raw_bytes > MAX_BLOCK_BYTES {
        return Err(Exception::new(
            271,
            "CANNOT_DECOMPRESS",
            format!(
                "A block of {compressed_bytes} bytes, {raw_bytes} unpacked: most likely the body is no compressed block at all"
            ),
        ));
    }
    let (checked, rest) = rest.split_at_checked(compressed_bytes).ok_or_else(cut_short)?;
    // ClickHouse writes the low half of the hash first.
    let computed = cityhash_rs::cityhash_102_128(checked).rotate_right(64).to_le_bytes();
    if computed != *checksum {
        return Err(Exception::new(
            40,
            "CHECKSUM_DOESNT_MATCH",
            format!(
                "Checksum doesn't match: corrupted data. Reference: {}. Actual: {}",
                hex::encode(checksum),
                hex::encode(computed)
            ),
        ));
    }
    // Only now are the sizes known to be meant.
    if raw_bytes > limit {
        return Err(super::body_too_large());
    }
    let data = &checked[HEADER_BYTES..];
    let mut raw = vec![0; raw_bytes];
    let written = match method {
        LZ4 => lz4_flex::block::decompress_into(data, &mut raw)
            .map_err(|error| cannot_decompress(&error.to_string()))?,
        ZSTD => zstd::bulk::decompress_to_buffer(data, &mut raw)
            .map_err(|error| cannot_decompress(&error.to_string()))?,
        NONE if data.len() == raw_bytes => {
            raw.copy_from_slice(data);
            raw_bytes
        }
        NONE => data.len(),
        other => {
            return Err(Exception::new(
                89,
                "UNKNOWN_COMPRESSION_METHOD",
                format!("Unknown compression method {other:#04x}; LZ4, zstd and none are known"),
            ));
        }
    };
    if written != raw_bytes {
        return Err(cannot_decompress(&format!("{written} bytes where the block promised {raw_bytes}")));
    }
    Ok((raw, rest))
}

fn cannot_decompress(reason: &str) -> Exception {
    Exception::new(271, "CANNOT_DECOMPRESS", format!("Cannot decompress: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(method: u8, raw: &[u8], data: &[u8]) -> Vec<u8> {
        let mut checked = vec![method];
        checked.extend(u32::try_from(data.len() + HEADER_BYTES).unwrap().to_le_bytes());
        checked.extend(u32::try_from(raw.len()).unwrap().to_le_bytes());
        checked.extend(data);
        let mut block = cityhash_rs::cityhash_102_128(&checked).rotate_right(64).to_le_bytes().to_vec();
        block.extend(checked);
        block
    }

    fn code(body: &[u8]) -> i32 {
        decompress(body, 1 << 20).unwrap_err().code
    }

    #[test]
    fn blocks_of_every_method_unpack_in_order() {
        let (a, b, c) =
            (b"aaaaaaaaaaaaaaaaaaaaaaaa".as_slice(), b"bbbbbbbbbbbbbbbb".as_slice(), b"c".as_slice());
        let body = [
            block(LZ4, a, &lz4_flex::block::compress(a)),
            block(ZSTD, b, &zstd::bulk::compress(b, 1).unwrap()),
            block(NONE, c, c),
        ]
        .concat();
        assert_eq!(decompress(&body, 1 << 20).unwrap().concat(), [a, b, c].concat());
        assert!(decompress(&[], 1 << 20).unwrap().is_empty());
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let raw = b"some bytes, some bytes, some bytes";
        let body = block(LZ4, raw, &lz4_flex::block::compress(raw));
        for position in 0..body.len() {
            let mut damaged = body.clone();
            damaged[position] ^= 1;
            assert!(decompress(&damaged, 1 << 20).is_err(), "byte {position}");
        }
        for length in 1..body.len() {
            assert_eq!(code(&body[..length]), 271, "cut at {length}");
        }
    }

    #[test]
    fn wrong_sizes_and_methods_are_refused() {
        assert_eq!(code(&block(NONE, b"abc", b"ab")), 271);
        assert_eq!(code(&block(LZ4, b"abcd", &lz4_flex::block::compress(b"abc"))), 271);
        assert_eq!(code(&block(0x95, b"abc", b"abc")), 89);
        assert_eq!(code(b"INSERT INTO t VALUES (1), (2), (3)"), 271);
        let large = vec![0; 2 << 20];
        assert_eq!(code(&block(LZ4, &large, &lz4_flex::block::compress(&large))), 229);
    }
}
