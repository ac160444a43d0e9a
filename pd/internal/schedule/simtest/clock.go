package simtest

import (
	"container/heap"
	"time"
)

// clock is virtual time: what is to happen, in order. Things of the same instant
// happen in the order in which they were asked for.
type clock struct {
	now   time.Time
	next  uint64
	queue events
}

type event struct {
	at    time.Time
	order uint64
	do    func()
}

// after lets do happen once d has passed.
func (c *clock) after(d time.Duration, do func()) {
	c.next++
	heap.Push(&c.queue, event{at: c.now.Add(d), order: c.next, do: do})
}

// run lets d pass.
func (c *clock) run(d time.Duration) {
	end := c.now.Add(d)
	for len(c.queue) > 0 && !c.queue[0].at.After(end) {
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
	}
	c.now = end
}

type events []event

// Len is the number of events.
func (q events) Len() int { return len(q) }

// Less orders by time, then by age.
func (q events) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].order < q[j].order
}

// Swap swaps.
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push appends.
func (q *events) Push(x any) { *q = append(*q, x.(event)) }

// Pop takes the last one away.
func (q *events) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = event{}
	*q = (*q)[:last]
	return e
}
