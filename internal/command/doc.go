// Package command has the shared parts of the command lines of Chaperone: exit
// statuses, errors of usage, flags that take one of several words, flags from the
// environment, and answers as a table, JSON or YAML.
package command
