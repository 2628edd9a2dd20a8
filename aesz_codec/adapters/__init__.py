"""Foundation models of others as `aesz_codec.foundation.FoundationModel`: each module imports its library when it is used."""
