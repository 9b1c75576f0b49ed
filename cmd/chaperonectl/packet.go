package main

import (
	"io"

	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/command"
)

// printPacket prints a packet in a format: md, html or json.
func (c *cli) printPacket(p *governance.Packet, format string) error {
	var text string
	var err error
	switch format {
	case "json":
		return command.Print(c.stdout, "json", p, func(io.Writer) {})
	case "html":
		text, err = p.HTML()
	default:
		text, err = p.Markdown()
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(c.stdout, text)
	return err
}
