//go:build !unix

package ipmisim

import (
	"os"

	"rerack.dev/rerack/internal/fault"
)

func openPipe(string) (*os.File, error) {
	return nil, fault.New(fault.Unsupported, "ipmi_sim needs named pipes")
}
