# gpg.sh: makes a key, signs and verifies, all of which its agent does.
set -eu
gpg --batch -q --passphrase '' --quick-generate-key plugin@test.example ed25519 sign 1d
echo text | gpg --batch -q --clearsign >"$HOME/signed"
gpg --batch -q --verify "$HOME/signed" 2>/dev/null && echo verified
gpg-connect-agent 'getinfo version' /bye | grep -q OK && echo agent
gpgconf --kill gpg-agent
rm -rf "$HOME/.gnupg" "$HOME/signed"
