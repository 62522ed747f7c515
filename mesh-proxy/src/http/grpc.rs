//! gRPC messages, counted in the bytes as they pass. Pure; nothing is kept of a message but how much of it is
//! still to come.

/// Bytes before each message: whether it is compressed, and its length.
const HEADER: u8 = 5;

/// Counts the messages of one direction of a call. Bytes may be cut anywhere.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Messages {
    count: u64,
    /// Bytes of the present header that were seen.
    header: u8,
    /// The length so far while the header is read, then what is left of the message.
    left: u32,
}

impl Messages {
    /// Takes in the next bytes.
    pub(crate) fn take(&mut self, mut data: &[u8]) {
        while let Some((&first, rest)) = data.split_first() {
            if self.header == HEADER {
                let passed = data.len().min(self.left as usize);
                self.left -= passed as u32;
                data = &data[passed..];
                if self.left == 0 {
                    *self = Self { count: self.count, ..Self::default() };
                }
                continue;
            }
            if self.header > 0 {
                self.left = self.left << 8 | u32::from(first);
            }
            self.header += 1;
            data = rest;
            if self.header == HEADER {
                self.count += 1;
                if self.left == 0 {
                    self.header = 0;
                }
            }
        }
    }

    /// Messages whose header has passed.
    pub(crate) fn count(self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for size in [0_u32, 1, 300, 0, 70_000] {
            bytes.push(0);
            bytes.extend(size.to_be_bytes());
            bytes.resize(bytes.len() + size as usize, 0xff);
        }
        for piece in [1, 2, 3, 4, 5, 6, 7, 64, 1000, bytes.len()] {
            let mut messages = Messages::default();
            bytes.chunks(piece).for_each(|piece| messages.take(piece));
            assert_eq!(messages.count(), 5, "in pieces of {piece}");
        }
        let mut broken_off = Messages::default();
        broken_off.take(&bytes[..3]);
        assert_eq!(broken_off.count(), 0);
        broken_off.take(&[0xff; 20]);
        assert_eq!(broken_off.count(), 1, "its length came in two pieces, and most of it did not come");
    }
}
