# tmux.sh: types into a terminal of its own and reads its screen.
set -eu
export TERM=xterm LC_ALL=C.UTF-8
tmux -f /dev/null new-session -d -x 80 -y 24 'cat'
tmux send-keys 'typed into it' Enter
for _ in $(seq 100); do
    if tmux capture-pane -p | grep -c 'typed into it' | grep -q 2; then
        echo "read back"
        tmux kill-server
        exit 0
    fi
    sleep 0.1
done
tmux capture-pane -p
exit 1
