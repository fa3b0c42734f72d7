//! Errors of a request, and how they are reported to the client.

/// Why a text or meta request is not executed. The connection survives all of them: the line is
/// consumed, and for a storage command with a readable length its data block is dropped too.
/// Without a length the block is parsed as commands, so a second error follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// Unknown command, or unknown arguments of an administration command.
    Unknown,
    /// Tokens are missing, the key is too long, or flags, exptime, length or CAS token are not
    /// valid numbers.
    CommandLine,
    /// The data block is not followed by `\r\n`. Line, block and two bytes are consumed.
    DataChunk,
    /// touch, gat, gats or flush_all with an exptime that is not a number.
    Exptime,
    /// incr or decr by something other than an unsigned 64-bit number.
    Delta,
    /// A delete with surplus arguments.
    DeleteUsage,
    /// A meta command with more than 20 tokens.
    MetaTokens,
    /// A meta flag that is given twice.
    MetaDuplicate,
    /// A letter that is not a meta flag.
    MetaFlag,
    /// A meta flag with an invalid number.
    MetaNumber,
    /// A base64 key that is not base64.
    MetaKey,
    /// An opaque of more than 31 bytes.
    MetaOpaque,
    /// `D` without an amount.
    MetaDelta,
    /// `J` without a number.
    MetaInitial,
    /// `ms` with an unknown mode.
    MetaStoreMode,
    /// `ma` with an unknown mode.
    MetaArithmeticMode,
    /// Any invalid flag of `ma`, which does not report which.
    MetaArithmeticFlag,
}

impl TextError {
    /// The whole reply.
    pub const fn line(self) -> &'static [u8] {
        match self {
            TextError::Unknown => b"ERROR\r\n",
            TextError::CommandLine => b"CLIENT_ERROR bad command line format\r\n",
            TextError::DataChunk => b"CLIENT_ERROR bad data chunk\r\n",
            TextError::Exptime => b"CLIENT_ERROR invalid exptime argument\r\n",
            TextError::Delta => b"CLIENT_ERROR invalid numeric delta argument\r\n",
            TextError::DeleteUsage => {
                b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
            }
            TextError::MetaTokens => b"CLIENT_ERROR options flags are too long\r\n",
            TextError::MetaDuplicate => b"CLIENT_ERROR duplicate flag\r\n",
            TextError::MetaFlag => b"CLIENT_ERROR invalid flag\r\n",
            TextError::MetaNumber => b"CLIENT_ERROR bad token in command line format\r\n",
            TextError::MetaKey => b"CLIENT_ERROR error decoding key\r\n",
            TextError::MetaOpaque => b"CLIENT_ERROR opaque token too long\r\n",
            TextError::MetaDelta => b"CLIENT_ERROR invalid numeric delta value\r\n",
            TextError::MetaInitial => b"CLIENT_ERROR invalid numeric initial value\r\n",
            TextError::MetaStoreMode => b"CLIENT_ERROR invalid mode for ms M token\r\n",
            TextError::MetaArithmeticMode => b"CLIENT_ERROR invalid mode for ma M token\r\n",
            TextError::MetaArithmeticFlag => b"CLIENT_ERROR invalid or duplicate flag\r\n",
        }
    }
}
