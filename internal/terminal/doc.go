// Package terminal relays between the terminal that a command was started on and
// a pseudoterminal of a program that the command runs.
//
// A program with a terminal of its own, as its controlling terminal, has job
// control, /dev/tty and the signals of the keyboard, and cannot read what is
// typed for the shell or for another job: the command reads the person's terminal
// only while it is in the foreground there, as sudo(8) and script(1) do.
package terminal
