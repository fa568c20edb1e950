package workflowtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"rerack.dev/rerack/orchestrator/bootplane"
	desk "rerack.dev/rerack/orchestrator/capture"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/capture"
)

// DiskChunks is how large the local disk of every machine is.
const DiskChunks = 5

// copies is the environment that copies a machine's disk: it reports as much as its power and the volume's
// mask let it, and stops where a defect says so.
func (b booting) copies(ctx context.Context) {
	d := b.d
	if !b.report(ctx, pxe.KindPhoneHome, "", "") {
		return
	}
	server := &desk.Desk{Store: d.store, Now: d.clock.Now}
	by := pxe.Caller{Machine: b.rec.Machine, Run: bootplane.BootOf(b.rec), Epoch: b.rec.Epoch}
	o, err := server.Orders(ctx, by)
	if err != nil {
		return
	}
	size := DiskChunks * o.ChunkBytes
	whole := sha256.New()
	for at := o.State; at.Stage == capture.Copy || at.Stage == capture.Verify; {
		d.clock.Sleep(time.Second)
		switch now, on := d.World.Life(b.life.Machine); {
		case !on || now != b.life:
			return
		case d.defect(b.life.Machine) == NeverServes && at.Next > o.Next+1:
			d.clock.Sleep(time.Hour) // it hangs, and time goes by
			return
		}
		if !d.reachesTarget(b.life.Machine, o.Target) {
			return
		}
		sum := sha256.Sum256([]byte(strconv.FormatInt(at.Next, 10)))
		r := capture.Report{Size: size, Stage: at.Stage, First: at.Next, Digests: []string{hex.EncodeToString(sum[:])}}
		if at.Stage == capture.Verify {
			whole.Write(sum[:])
			r.SHA256 = hex.EncodeToString(whole.Sum(nil))
		}
		if d.defect(b.life.Machine) == ReadsBadly && at.Next > 1 {
			r.Digests, r.Failure = nil, &capture.Failure{Kind: "internal", Text: "read error at LBA 4711"}
		}
		if at, err = server.Report(ctx, by, r); err != nil || r.Failure != nil {
			return
		}
	}
}

// reachesTarget reports whether the array lets a machine in to a target.
func (d *DataCentre) reachesTarget(machine, target string) bool {
	for name, v := range d.topo.Volumes {
		if string(v.Spec.Target) == target {
			return d.World.CanWrite(machine, name)
		}
	}
	return false
}
