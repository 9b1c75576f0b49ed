# ssh.sh HOST PORT KEY USER: the client's tools, and a command on a granted host.
set -eu
ssh -V 2>&1 | grep -o '^OpenSSH'
[ "$(whoami)" = "$USER" ] && echo "whoami"
mkdir -p "$HOME/.ssh"
ssh-keygen -q -t ed25519 -N '' -f "$HOME/.ssh/own"
install -m 600 "$3" "$HOME/.ssh/key"
eval "$(ssh-agent)" >/dev/null
ssh-add -q "$HOME/.ssh/key"
ssh-add -l | grep -q ED25519 && echo "agent"
ssh -p "$2" -o BatchMode=yes -o StrictHostKeyChecking=accept-new "$4@$1" 'echo "remote: $((6 * 7))"'
ssh-agent -k >/dev/null
rm -rf "$HOME/.ssh"
